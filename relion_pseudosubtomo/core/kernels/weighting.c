#include "instruction_sets.h"
#include "kernels.h"

#include <math.h>

/* Fills factor gain exp(2 pi i cycles k), k = 0 .. n - 1: a few powers of one step in float64, each then
 * multiplied by their number of steps again and again. */
PS_INLINE void make_ramp(double cycles, const double *gain, int64_t n, double factor, float *ramp)
{
    enum { LANES = 8 };
    double re[LANES], im[LANES], turns = cycles - rint(cycles);
    for (int j = 0; j < LANES; j++) {
        re[j] = cos(2 * M_PI * (j * turns));
        im[j] = sin(2 * M_PI * (j * turns));
    }
    const double step_re = cos(2 * M_PI * (LANES * turns)), step_im = sin(2 * M_PI * (LANES * turns));
    for (int64_t k = 0; k < n; k += LANES) {
        int64_t count = n - k < LANES ? n - k : LANES;
        for (int64_t j = 0; j < count; j++) {
            ramp[2 * (k + j)] = (float)(factor * (gain[k + j] * re[j]));
            ramp[2 * (k + j) + 1] = (float)(factor * (gain[k + j] * im[j]));
        }
        for (int j = 0; j < LANES; j++) {
            double turned = re[j] * step_re - im[j] * step_im;
            im[j] = re[j] * step_im + im[j] * step_re;
            re[j] = turned;
        }
    }
}

PS_CLONES
void ps_make_ramps(const double *cycles, const double *gain, int64_t s, double factor, float *ramp_x,
                   float *ramp_y)
{
    make_ramp(cycles[0], gain, s / 2 + 1, 1.0, ramp_x);
    make_ramp(cycles[1], gain, s / 2 + 1, factor, ramp_y);
    for (int64_t k = 1; k <= s / 2; k++) {
        ramp_y[2 * (s - k)] = ramp_y[2 * k];
        ramp_y[2 * (s - k) + 1] = -ramp_y[2 * k + 1];
    }
}

/* sin(2 pi t) of a phase t in turns. The phase is reduced in float64; the sine is the odd minimax
 * polynomial of degree 9 on a quarter turn, good to 2e-7 in float32. */
PS_INLINE float sine_of_turns(double t)
{
    const double magic = 6755399441055744.0; /* adding 1.5 * 2^52 rounds to a whole number */
    double whole = (t + magic) - magic;
    float r = (float)(t - whole), a = fabsf(r);
    a = a < 0.5f - a ? a : 0.5f - a;
    float x = a * a;
    float p = 39.536616011989714536f;
    p = p * x - 76.549771144485021068f;
    p = p * x + 81.601003621158426427f;
    p = p * x - 41.341655024781246652f;
    p = p * x + 6.2831851600640069577f;
    return copysignf(a * p, r);
}

/* Crops the column transforms to the s lowest frequencies, shifts, and multiplies by the CTF and all
 * weights (spec 2.4, steps 2 to 9). ctf, even, odd, noise and weight may be NULL. */
PS_CLONES
void ps_weight_slice(const float *columns, int64_t column_length, int64_t s, const float *ramp_x,
                     const float *ramp_y, float sign, const ps_ctf *ctf, const double *kx,
                     const double *ky, const float *gain, const double *even, const float *odd,
                     const float *noise, float *slice, float *weight)
{
    float c[PS_MAX_LINE];
    for (int64_t x = 0; x <= s / 2; x++) {
        float *out = slice + 2 * x * s;
        if (ctf) {
            double base = ctf->constant + ctf->xx * kx[x] * kx[x], cross = ctf->xy * kx[x];
            double xx = kx[x] * kx[x], yy = ctf->yy, k4 = ctf->k4;
            const float *g = gain + x * s;
            if (even) {
                const double *e = even + x * s;
                for (int64_t y = 0; y < s; y++) {
                    double k2 = xx + ky[y] * ky[y];
                    c[y] = -sine_of_turns(base + (cross + yy * ky[y]) * ky[y] + k4 * (k2 * k2) + e[y])
                           * g[y];
                }
            } else {
                for (int64_t y = 0; y < s; y++) {
                    double k2 = xx + ky[y] * ky[y];
                    c[y] = -sine_of_turns(base + (cross + yy * ky[y]) * ky[y] + k4 * (k2 * k2)) * g[y];
                }
            }
        } else {
            for (int64_t y = 0; y < s; y++) c[y] = 1.0f;
        }
        if (weight) {
            float *w = weight + x * s;
            for (int64_t y = 0; y < s; y++) w[y] = c[y] * c[y];
            if (noise)
                for (int64_t y = 0; y < s; y++) w[y] *= noise[x * s + y];
        }
        if (noise)
            for (int64_t y = 0; y < s; y++) c[y] *= noise[x * s + y];
        float rx = ramp_x[2 * x] * sign, ix = ramp_x[2 * x + 1] * sign;
        for (int64_t part = 0; part < 2; part++) {
            int64_t y0 = part * (s / 2), y1 = y0 + s / 2;
            const float *in = columns + 2 * (x * column_length + (part ? column_length - s : 0));
            for (int64_t y = y0; y < y1; y++) {
                float rr = (rx * ramp_y[2 * y] - ix * ramp_y[2 * y + 1]) * c[y];
                float ri = (rx * ramp_y[2 * y + 1] + ix * ramp_y[2 * y]) * c[y];
                out[2 * y] = in[2 * y] * rr - in[2 * y + 1] * ri;
                out[2 * y + 1] = in[2 * y] * ri + in[2 * y + 1] * rr;
            }
        }
        if (odd) {
            const float *o = odd + 2 * x * s;
            for (int64_t y = 0; y < s; y++) {
                float re = out[2 * y], im = out[2 * y + 1];
                out[2 * y] = re * o[2 * y] - im * o[2 * y + 1];
                out[2 * y + 1] = re * o[2 * y + 1] + im * o[2 * y];
            }
        }
    }
}
