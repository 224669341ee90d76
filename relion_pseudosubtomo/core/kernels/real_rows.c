#include "instruction_sets.h"
#include "kernels.h"

#include <string.h>

/* Two real rows a and b are the real and the imaginary part of one complex row a + i b, whose transform
 * is A + i B; complex transforms are twice as fast. */

/* Packs the half-complex transforms of 2 n_pairs rows, which stand across the columns, into transforms of
 * pairs. As in a complex-to-real transform, imaginary parts at 0 and s/2 are left out. */
PS_CLONES
void ps_pack_rows(const float *columns, int64_t column_stride, int64_t s, int64_t n_pairs, float *pairs)
{
    for (int64_t first = 0; first < n_pairs; first += 4) { /* four pairs fill a cache line */
        int64_t end = first + 4 < n_pairs ? first + 4 : n_pairs;
        for (int64_t k = 0; k <= s / 2; k++) {
            const float *in = columns + 2 * k * column_stride;
            for (int64_t p = first; p < end; p++) {
                float ar = in[4 * p], ai = in[4 * p + 1], br = in[4 * p + 2], bi = in[4 * p + 3];
                float *out = pairs + 2 * p * s;
                if (k == 0 || k == s / 2) ai = bi = 0.0f;
                if (k > 0) {
                    out[2 * (s - k)] = ar + bi;
                    out[2 * (s - k) + 1] = br - ai;
                }
                out[2 * k] = ar - bi;
                out[2 * k + 1] = ai + br;
            }
        }
    }
}

/* The reverse: transforms of pairs into half-complex transforms that stand across the columns. */
PS_CLONES
void ps_unpack_rows(const float *pairs, int64_t s, int64_t n_pairs, int64_t column_stride,
                    float *columns)
{
    for (int64_t first = 0; first < n_pairs; first += 4) {
        int64_t end = first + 4 < n_pairs ? first + 4 : n_pairs;
        for (int64_t k = 0; k <= s / 2; k++) {
            float *out = columns + 2 * k * column_stride;
            for (int64_t p = first; p < end; p++) {
                const float *z = pairs + 2 * (p * s + k), *w = pairs + 2 * (p * s + (k ? s - k : 0));
                out[4 * p] = 0.5f * (z[0] + w[0]);
                out[4 * p + 1] = 0.5f * (z[1] - w[1]);
                out[4 * p + 2] = 0.5f * (z[1] + w[1]);
                out[4 * p + 3] = 0.5f * (w[0] - z[0]);
            }
        }
    }
}

/* Returns the sum over |x - s/2| <= reach of one of a pair's rows. */
static double sum_inside(const float *row, int64_t s, int64_t reach)
{
    int64_t x0 = s / 2 - reach, x1 = s / 2 + reach;
    if (x1 > s - 1) x1 = s - 1;
    double sum = 0.0;
    for (int64_t x = x0; x <= x1; x++) sum += row[2 * x];
    return sum;
}

/* Applies the circle crop to the central rows of an s x s image in place (spec 2.6): pairs holds rows
 * (s - n)/2 onwards, two by two, taper the mask of the central n x n pixels (zero outside), total the sum
 * over the whole image, inside[i] the reach of the circle in row i of n + 1. The mean outside the circle is
 * the total less what is inside. What lies outside the central n x n becomes zero. */
PS_CLONES
void ps_mask_pairs(float *pairs, int64_t s, int64_t n, int64_t n_pairs, double total,
                   const int32_t *inside, double n_outside, int subtract, const float *taper)
{
    int64_t edge = (s - n) / 2, n_rows = 2 * n_pairs < n + 1 ? 2 * n_pairs : n + 1;
    float mean = 0.0f;
    if (subtract && n_outside > 0) {
        double sum = 0.0;
        for (int64_t y = 0; y < n_rows; y++)
            sum += sum_inside(pairs + 2 * (y / 2) * s + y % 2, s, inside[y]);
        mean = (float)((total - sum) / n_outside);
    }
    for (int64_t p = 0; p < n_pairs; p++) {
        float *row = pairs + 2 * p * s;
        if (2 * p >= n) {
            memset(row, 0, (size_t)(2 * s) * sizeof(float));
            continue;
        }
        const float *upper = taper + 2 * p * n, *lower = upper + n;
        memset(row, 0, (size_t)(2 * edge) * sizeof(float));
        for (int64_t x = 0; x < n; x++) {
            row[2 * (edge + x)] = (row[2 * (edge + x)] - mean) * upper[x];
            row[2 * (edge + x) + 1] = (row[2 * (edge + x) + 1] - mean) * lower[x];
        }
        memset(row + 2 * (edge + n), 0, (size_t)(2 * (s - edge - n)) * sizeof(float));
    }
}

/* Copies the central n x n pixels out of the pairs. */
PS_CLONES
void ps_crop_pairs(const float *pairs, int64_t s, int64_t n, float *image)
{
    int64_t edge = (s - n) / 2;
    for (int64_t y = 0; y < n; y += 2) {
        const float *row = pairs + y * s + 2 * edge;
        for (int64_t x = 0; x < n; x++) image[y * n + x] = row[2 * x];
        for (int64_t x = 0; x < n; x++) image[(y + 1) * n + x] = row[2 * x + 1];
    }
}
