#include "kernels.h"

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>

/* One build serves every x86-64 CPU: the loops are compiled for three instruction sets and the best
 * is chosen at load time. Contraction to fused multiply-add is off, so all give the same bits. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define PS_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#define PS_HAVE_F16C 1
#include <immintrin.h>
#else
#define PS_CLONES
#endif

#define PS_MAX_LINE 8192 /* longest side of a binned box; checked by the callers */

/* ---- windows --------------------------------------------------------------------------------- */

static float half_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, magnitude = h & 0x7fffu, bits;
    float value;
    if (magnitude >= 0x7c00u) {                       /* infinite or not a number */
        bits = sign | 0x7f800000u | (magnitude & 0x3ffu) << 13;
    } else if (magnitude >= 0x400u) {                 /* normal: shift and rebias the exponent */
        bits = sign | ((magnitude << 13) + 0x38000000u);
    } else {                                          /* subnormal: an exact multiple of 2^-24 */
        value = (float)magnitude * 0x1p-24f;
        return sign ? -value : value;
    }
    memcpy(&value, &bits, sizeof value);
    return value;
}

#ifdef PS_HAVE_F16C
__attribute__((target("avx,f16c")))
static void convert_half_f16c(const char *source, int64_t n, float *out)
{
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(source + 2 * i))));
    for (; i < n; i++) {
        uint16_t h;
        memcpy(&h, source + 2 * i, 2);
        out[i] = half_to_float(h);
    }
}
#endif

static void convert_half(const char *source, int64_t n, float *out)
{
#ifdef PS_HAVE_F16C
    if (__builtin_cpu_supports("f16c")) {
        convert_half_f16c(source, n, out);
        return;
    }
#endif
    for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, source + 2 * i, 2);
        out[i] = half_to_float(h);
    }
}

static int64_t size_of_mode(int mode) { return mode == PS_FLOAT32 ? 4 : mode == PS_INT8 ? 1 : 2; }

static void convert(const char *source, int mode, int64_t n, float *out)
{
    switch (mode) {
    case PS_FLOAT32:
        memcpy(out, source, (size_t)n * sizeof(float));
        break;
    case PS_FLOAT16:
        convert_half(source, n, out);
        break;
    case PS_INT8:
        for (int64_t i = 0; i < n; i++) out[i] = (float)((const int8_t *)source)[i];
        break;
    case PS_INT16:
        for (int64_t i = 0; i < n; i++) {
            int16_t value;
            memcpy(&value, source + 2 * i, 2);
            out[i] = (float)value;
        }
        break;
    default:
        for (int64_t i = 0; i < n; i++) {
            uint16_t value;
            memcpy(&value, source + 2 * i, 2);
            out[i] = (float)value;
        }
    }
}

static int64_t clamp(int64_t i, int64_t n) { return i < 0 ? 0 : i >= n ? n - 1 : i; }

/* A mapped image that is truncated, or lost by its file system, raises SIGBUS where it is read. While
 * rows are copied that becomes an error of this one image; elsewhere it ends the process as ever. */
static __thread sigjmp_buf *bus_target;

static void on_bus_error(int number, siginfo_t *info, void *context)
{
    (void)info;
    (void)context;
    if (bus_target) siglongjmp(*bus_target, 1);
    signal(number, SIG_DFL);
    raise(number);
}

void ps_catch_bus_errors(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, NULL);
}

/* Copies n_rows rows of a window as float32; pixels outside the image repeat the nearest edge pixel.
 * Returns how many values are not finite (x - x is zero only where x is). */
PS_CLONES
static int64_t copy_rows(const char *image, int mode, int64_t height, int64_t width, int64_t row_bytes,
                     int64_t corner_x, int64_t corner_y, int64_t row_length, int64_t n_rows,
                     float *rows)
{
    int64_t size = size_of_mode(mode), n_bad = 0;
    int64_t first = clamp(corner_x, width), last = clamp(corner_x + row_length - 1, width);
    int64_t left = first - corner_x;
    if (left > row_length - 1) left = row_length - 1; /* the window lies left of the image */
    if (left < 0) left = 0;
    int64_t count = last - first + 1;
    for (int64_t r = 0; r < n_rows; r++) {
        const char *source = image + clamp(corner_y + r, height) * row_bytes + first * size;
        float *out = rows + r * row_length;
        convert(source, mode, count, out + left);
        for (int64_t i = 0; i < left; i++) out[i] = out[left];
        for (int64_t i = left + count; i < row_length; i++) out[i] = out[left + count - 1];
        int32_t bad = 0;
        for (int64_t i = 0; i < row_length; i++) bad += !(out[i] - out[i] == 0.0f);
        n_bad += bad;
    }
    return n_bad;
}

int64_t ps_copy_rows(const char *image, int mode, int64_t height, int64_t width, int64_t row_bytes,
                     int64_t corner_x, int64_t corner_y, int64_t row_length, int64_t n_rows,
                     float *rows)
{
    sigjmp_buf target;
    volatile int64_t n_bad = -1;
    if (sigsetjmp(target, 1) == 0) {
        bus_target = &target;
        n_bad = copy_rows(image, mode, height, width, row_bytes, corner_x, corner_y, row_length,
                          n_rows, rows);
    }
    bus_target = NULL;
    return n_bad;
}

/* Writes the first n_columns complex values of each row into the columns, from first_row on. */
PS_CLONES
void ps_transpose_rows(const float *rows, int64_t n_rows, int64_t row_stride, int64_t n_columns,
                       int64_t first_row, int64_t column_length, float *columns)
{
    const double *in = (const double *)rows; /* one complex value moves as one 8-byte item */
    double *out = (double *)columns + first_row;
    for (int64_t r0 = 0; r0 < n_rows; r0 += 8) {
        int64_t r1 = r0 + 8 < n_rows ? r0 + 8 : n_rows;
        for (int64_t c = 0; c < n_columns; c++)
            for (int64_t r = r0; r < r1; r++) out[c * column_length + r] = in[r * row_stride + c];
    }
}

/* ---- CTF and weights ------------------------------------------------------------------------- */

/* sin(2 pi t) of a phase t in turns. The phase is reduced in float64; the sine is the odd minimax
 * polynomial of degree 9 on a quarter turn, good to 2e-7 in float32. */
static inline float sine_of_turns(double t)
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

/* ---- real-space mask ------------------------------------------------------------------------- */

/* Applies the circle crop to the central rows of an s x s image in place (spec 2.6): rows holds rows
 * (s - n)/2 onwards, taper the mask of the central n x n pixels (zero outside), total the sum over the
 * whole image, inside[i] the reach of the circle in row i. The mean outside the circle is the total
 * less what is inside. What lies outside the central n x n becomes zero. */
PS_CLONES
void ps_mask_rows(float *rows, int64_t s, int64_t n, int64_t n_rows, double total,
                  const int32_t *inside, double n_outside, int subtract, const float *taper)
{
    int64_t edge = (s - n) / 2;
    float mean = 0.0f;
    if (subtract && n_outside > 0) {
        double sum = 0.0;
        for (int64_t y = 0; y < n_rows; y++) {
            int64_t x0 = s / 2 - inside[y], x1 = s / 2 + inside[y];
            if (x1 > s - 1) x1 = s - 1;
            double line = 0.0;
            for (int64_t x = x0; x <= x1; x++) line += rows[y * s + x];
            sum += line;
        }
        mean = (float)((total - sum) / n_outside);
    }
    for (int64_t y = 0; y < n_rows; y++) {
        float *row = rows + y * s;
        if (y >= n) {
            memset(row, 0, (size_t)s * sizeof(float));
            continue;
        }
        for (int64_t x = 0; x < edge; x++) row[x] = 0.0f;
        for (int64_t x = 0; x < n; x++) row[edge + x] = (row[edge + x] - mean) * taper[y * n + x];
        for (int64_t x = edge + n; x < s; x++) row[x] = 0.0f;
    }
}

/* ---- Fourier insertion ----------------------------------------------------------------------- */

/* Eight floats: the packed voxels (re, im, weight, multiplicity) at x and x + 1. */
typedef float packed_pair __attribute__((vector_size(32), aligned(4)));

/* Adds one slice to the packed volume (spec 2.8). The volume has n + 3 planes of n + 3 rows of
 * n/2 + 2 voxels, index (n/2 + 1 + j_z, n/2 + 1 + j_y, j_x): one voxel more on each side than are
 * kept, so the eight neighbours of every point in reach need no test. Geometry is in float64. */
PS_CLONES
void ps_insert_slice(const float *slice, const float *weight, int64_t s, const int32_t *last_x,
                     const double *u, const double *v, double scale, int64_t n, float *volume)
{
    static const double magic = 6755399441055744.0;
    int32_t offset[PS_MAX_LINE];
    float fx[PS_MAX_LINE], fy[PS_MAX_LINE], fz[PS_MAX_LINE], flip[PS_MAX_LINE];
    const int64_t row = (n / 2 + 2) * 4, plane = (n + 3) * row;
    const double border = (double)(n / 2 + 1), x_end = (double)(n / 2 + 1);
    for (int64_t x = 0; x <= s / 2; x++) {
        int64_t reach = (int64_t)floor(sqrt((double)(s * s / 4 - x * x)));
        int64_t y0 = x == 0 ? 0 : reach == s / 2 ? -s / 2 : -reach;
        int64_t y1 = reach < s / 2 - 1 ? reach : s / 2 - 1;
        for (int64_t y = y0; y <= y1; y++) {
            double gx = (double)x * u[0] + (double)y * v[0];
            double gy = (double)x * u[1] + (double)y * v[1];
            double gz = (double)x * u[2] + (double)y * v[2];
            double side = gx < 0.0 ? -1.0 : 1.0;
            gx *= side;
            gy *= side;
            gz *= side;
            /* floor by rounding, then a step back where that went up */
            double ix = (gx + magic) - magic, iy = (gy + magic) - magic, iz = (gz + magic) - magic;
            ix -= ix > gx ? 1.0 : 0.0;
            iy -= iy > gy ? 1.0 : 0.0;
            iz -= iz > gz ? 1.0 : 0.0;
            int64_t i = y - y0;
            fx[i] = (float)(gx - ix);
            fy[i] = (float)(gy - iy);
            fz[i] = (float)(gz - iz);
            flip[i] = (float)side;
            int reached = (ix < x_end) & (iy >= -border) & (iy < border) & (iz >= -border)
                          & (iz < border);
            double place = ((iz + border) * (double)(n + 3) + iy + border) * (double)(n / 2 + 2) + ix;
            offset[i] = reached ? (int32_t)place : -1;
        }
        for (int64_t y = y0; y <= y1; y++) {
            int64_t i = y - y0, k = x * s + (y < 0 ? y + s : y);
            if (offset[i] < 0 || x > last_x[y < 0 ? y + s : y]) continue;
            float sign = (x + y) & 1 ? -1.0f : 1.0f;
            float re = slice[2 * k] * sign, im = slice[2 * k + 1] * sign * flip[i], w = weight[k];
            float far = fx[i] * (float)scale, near = (float)scale - far;
            packed_pair pair = {re, im, w, 1.0f, re, im, w, 1.0f};
            packed_pair factor = {near, near, near, near, far, far, far, far};
            pair *= factor;
            float *voxel = volume + 4 * (int64_t)offset[i];
            float z1 = fz[i], z0 = 1.0f - z1, y1w = fy[i], y0w = 1.0f - y1w;
            *(packed_pair *)voxel += pair * (z0 * y0w);
            *(packed_pair *)(voxel + row) += pair * (z0 * y1w);
            *(packed_pair *)(voxel + plane) += pair * (z1 * y0w);
            *(packed_pair *)(voxel + plane + row) += pair * (z1 * y1w);
        }
    }
}

static inline float *packed_voxel(float *volume, int64_t n, int64_t z, int64_t y)
{
    int64_t jz = z < n / 2 ? z : z - n, jy = y < n / 2 ? y : y - n;
    return volume + ((jz + n / 2 + 1) * (n + 3) + (jy + n / 2 + 1)) * (n / 2 + 2) * 4;
}

/* Every addition to the plane x = 0 counts at the mirrored voxel too, conjugated; insertion is linear,
 * so that is done once, at the end. */
static void mirror_first_plane(float *volume, int64_t n)
{
    for (int64_t z = 0; z <= n / 2; z++) {
        for (int64_t y = 0; y < n; y++) {
            int64_t mz = (n - z) % n, my = (n - y) % n;
            if (mz < z || (mz == z && my < y)) continue;
            float *a = packed_voxel(volume, n, z, y), *b = packed_voxel(volume, n, mz, my);
            float re = a[0] + b[0], im = a[1] - b[1], w = a[2] + b[2], m = a[3] + b[3];
            a[0] = b[0] = re;
            a[1] = im;
            b[1] = -im;
            a[2] = b[2] = w;
            a[3] = b[3] = m;
        }
    }
}

/* Splits the packed volume into half-complex data (times scale and the sign that puts the origin at the
 * centre), weight and multiplicity in FFTW order, and clears it for the next particle. */
PS_CLONES
void ps_unpack_volume(float *volume, int64_t n, float scale, float *data, float *weight,
                      float *multiplicity)
{
    int64_t half = n / 2 + 1;
    mirror_first_plane(volume, n);
    for (int64_t z = 0; z < n; z++) {
        for (int64_t y = 0; y < n; y++) {
            const float *in = packed_voxel(volume, n, z, y);
            int64_t line = (z * n + y) * half;
            float sign = (z + y) & 1 ? -scale : scale;
            for (int64_t x = 0; x < half; x++) {
                float signed_scale = x & 1 ? -sign : sign;
                data[2 * (line + x)] = in[4 * x] * signed_scale;
                data[2 * (line + x) + 1] = in[4 * x + 1] * signed_scale;
                weight[line + x] = in[4 * x + 2];
                multiplicity[line + x] = in[4 * x + 3];
            }
        }
    }
    memset(volume, 0, (size_t)((n + 3) * (n + 3) * (n / 2 + 2) * 4) * sizeof(float));
}

/* The transform of the finished real volume is Hermitian in its last plane, x = n/2; what was inserted
 * need not be. */
static void make_last_plane_hermitian(float *data, int64_t n)
{
    int64_t half = n / 2 + 1;
    for (int64_t z = 0; z <= n / 2; z++) {
        for (int64_t y = 0; y < n; y++) {
            int64_t mz = (n - z) % n, my = (n - y) % n;
            float *a = data + 2 * ((z * n + y) * half + n / 2);
            float *b = data + 2 * ((mz * n + my) * half + n / 2);
            float re = 0.5f * (a[0] + b[0]), im = 0.5f * (a[1] - b[1]);
            a[0] = b[0] = re;
            a[1] = im;
            b[1] = -im;
        }
    }
}

/* Multiplies data, weight and multiplicity by the cone weight (spec 2.9). */
void ps_weight_cone(float *data, float *weight, float *multiplicity, int64_t n,
                    const double *rotation, double slope, double sig0)
{
    const double *a = rotation;
    make_last_plane_hermitian(data, n);
    for (int64_t z = 0; z < n; z++) {
        double kz = (double)(z < n / 2 ? z : z - n);
        for (int64_t y = 0; y < n; y++) {
            double ky = (double)(y < n / 2 ? y : y - n);
            for (int64_t x = 0; x <= n / 2; x++) {
                double kx = (double)x;
                double rx = a[0] * kx + a[1] * ky + a[2] * kz;
                double ry = a[3] * kx + a[4] * ky + a[5] * kz;
                double rz = a[6] * kx + a[7] * ky + a[8] * kz;
                double t = sqrt(rx * rx + ry * ry) / (fabs(rz) * slope + sig0);
                float m = (float)(1.0 - exp(-0.5 * t * t));
                int64_t i = (z * n + y) * (n / 2 + 1) + x;
                data[2 * i] *= m;
                data[2 * i + 1] *= m;
                weight[i] *= m;
                multiplicity[i] *= m;
            }
        }
    }
}
