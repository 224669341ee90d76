#include "kernels.h"
#include "pixels.h"

/* Complex values as they lie in memory: one and four as 8-byte items, eight as sixteen floats. */
typedef double one_item __attribute__((may_alias));
typedef double four_items __attribute__((vector_size(32), aligned(8), may_alias));
typedef int64_t four_indices __attribute__((vector_size(32)));
typedef float eight_complex __attribute__((vector_size(64), aligned(4)));
typedef int32_t sixteen_indices __attribute__((vector_size(64)));

/* Deals the complex pairs of a row out to its parts: pair parts * j + r becomes number j of part r. */
PS_INLINE void deal_pairs(const one_item *line, int64_t parts, int64_t length, one_item *out)
{
    for (int64_t r = 0; r < parts; r++)
        for (int64_t j = 0; j < length; j++) out[r * length + j] = line[parts * j + r];
}

/* Copies rows of a window. The pairs of each row are dealt out to parts. The rows to come are asked for
 * early: they lie on other pages, where no hardware looks ahead. Returns how many values are not
 * finite. */
PS_CLONES
static int64_t copy_rows(const ps_image *image, int64_t corner_x, int64_t corner_y, int64_t parts,
                         int64_t row_length, int64_t n_rows, float *rows)
{
    _Alignas(64) float line[PS_MAX_WINDOW];
    int64_t n_bad = 0;
    for (int64_t r = 0; r < n_rows; r++) {
        prefetch_pixels(image, corner_y + r + PS_ROWS_AHEAD, corner_x, row_length);
        float *out = parts > 1 ? line : rows + r * row_length;
        copy_pixels(image, corner_y + r, corner_x, row_length, out);
        n_bad += count_not_finite(out, row_length);
        one_item *dealt = (one_item *)(rows + r * row_length);
        switch (parts) {
        case 1: break;
        case 2: deal_pairs((const one_item *)line, 2, row_length / 4, dealt); break;
        case 3: deal_pairs((const one_item *)line, 3, row_length / 6, dealt); break;
        default: deal_pairs((const one_item *)line, parts, row_length / (2 * parts), dealt);
        }
    }
    return n_bad;
}

int64_t ps_copy_rows(const ps_image *image, int64_t corner_x, int64_t corner_y, int64_t parts,
                     int64_t row_length, int64_t n_rows, float *rows)
{
    volatile int64_t n_bad = -1;
    PS_GUARDED(n_bad, copy_rows(image, corner_x, corner_y, parts, row_length, n_rows, rows));
    return n_bad;
}

/* The real and imaginary parts change places; sixteen floats from the last to the first. */
#define SWAP_PARTS(z) \
    PS_SHUFFLE(sixteen_indices, z, z, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)
#define TURN_ROUND(z) \
    PS_SHUFFLE(sixteen_indices, z, z, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)

/* Writes the first n_columns complex values of each row into the columns, from first_row on. */
PS_INLINE void transpose_rows(const float *rows, int64_t n_rows, int64_t row_stride, int64_t n_columns,
                              int64_t first_row, int64_t column_stride, float *columns)
{
    const one_item *in = (const one_item *)rows;
    one_item *out = (one_item *)columns + first_row;
    const int64_t whole = n_columns - n_columns % 4;
    for (int64_t r = 0; r < n_rows; r += 4) {
        const one_item *i0 = in + r * row_stride;
        if (r + 4 > n_rows) {
            for (int64_t c = 0; c < n_columns; c++)
                for (int64_t k = r; k < n_rows; k++) out[c * column_stride + k] = in[k * row_stride + c];
            break;
        }
        for (int64_t c = 0; c < whole; c += 4) {
            four_items a = *(const four_items *)(i0 + c);
            four_items b = *(const four_items *)(i0 + row_stride + c);
            four_items d = *(const four_items *)(i0 + 2 * row_stride + c);
            four_items e = *(const four_items *)(i0 + 3 * row_stride + c);
            four_items ab0 = PS_SHUFFLE(four_indices, a, b, 0, 4, 2, 6);
            four_items ab1 = PS_SHUFFLE(four_indices, a, b, 1, 5, 3, 7);
            four_items de0 = PS_SHUFFLE(four_indices, d, e, 0, 4, 2, 6);
            four_items de1 = PS_SHUFFLE(four_indices, d, e, 1, 5, 3, 7);
            one_item *o = out + c * column_stride + r;
            *(four_items *)o = PS_SHUFFLE(four_indices, ab0, de0, 0, 1, 4, 5);
            *(four_items *)(o + column_stride) = PS_SHUFFLE(four_indices, ab1, de1, 0, 1, 4, 5);
            *(four_items *)(o + 2 * column_stride) = PS_SHUFFLE(four_indices, ab0, de0, 2, 3, 6, 7);
            *(four_items *)(o + 3 * column_stride) = PS_SHUFFLE(four_indices, ab1, de1, 2, 3, 6, 7);
        }
        for (int64_t c = whole; c < n_columns; c++)
            for (int64_t k = 0; k < 4; k++) out[c * column_stride + r + k] = i0[k * row_stride + c];
    }
}

/* Joins the transforms of a row's parts into the row's transform: out[k] is the sum over the parts of
 * a[k] z[k] + b[k] conj(z[-k]). Each complex factor comes as four pairs' worth of floats, laid out so
 * that a pair is multiplied as it lies in memory: (a, a), (-a', a'), (b, -b), (b', b') with ' for the
 * imaginary part. */
PS_INLINE void join_one(const float *z, int64_t parts, int64_t length, const float *factors,
                        int64_t n_columns, int64_t k, float *out)
{
    float re = 0.0f, im = 0.0f;
    int64_t near = 2 * (k % length), far = 2 * ((length - k % length) % length);
    for (int64_t r = 0; r < parts; r++) {
        const float *f = factors + 8 * r * n_columns + 2 * k, *part = z + 2 * r * length;
        re += part[near] * f[0] + part[near + 1] * f[2 * n_columns];
        im += part[near + 1] * f[1] + part[near] * f[2 * n_columns + 1];
        re += part[far] * f[4 * n_columns] + part[far + 1] * f[6 * n_columns];
        im += part[far + 1] * f[4 * n_columns + 1] + part[far] * f[6 * n_columns + 1];
    }
    out[2 * k] = re;
    out[2 * k + 1] = im;
}

PS_INLINE void join_eight(const float *z, int64_t parts, int64_t length, const float *factors,
                          int64_t n_columns, int64_t k, float *out)
{
    eight_complex sum = {0};
    for (int64_t r = 0; r < parts; r++) {
        const float *f = factors + 8 * r * n_columns + 2 * k, *part = z + 2 * r * length;
        eight_complex near = *(const eight_complex *)(part + 2 * k);
        eight_complex far = *(const eight_complex *)(part + 2 * (length - k - 7));
        eight_complex turned = TURN_ROUND(far);
        sum += near * *(const eight_complex *)f
               + SWAP_PARTS(near) * *(const eight_complex *)(f + 2 * n_columns);
        sum += SWAP_PARTS(turned) * *(const eight_complex *)(f + 4 * n_columns)
               + turned * *(const eight_complex *)(f + 6 * n_columns);
    }
    *(eight_complex *)(out + 2 * k) = sum;
}

PS_INLINE void join_row(const float *z, int64_t parts, int64_t length, const float *factors,
                        int64_t n_columns, float *out)
{
    int64_t end = n_columns < length ? n_columns : length, k = 1;
    join_one(z, parts, length, factors, n_columns, 0, out);
    for (; end > 8 && k < end; k += 8) {
        if (k > end - 8) k = end - 8; /* the last eight overlap those before */
        join_eight(z, parts, length, factors, n_columns, k, out);
    }
    for (; k < n_columns; k++) join_one(z, parts, length, factors, n_columns, k, out);
}

/* Joins the parts of every row and writes the rows' transforms into the columns, from first_row on. */
PS_CLONES
void ps_join_rows(const float *parts_fs, int64_t n_rows, int64_t parts, int64_t length,
                  const float *factors, int64_t n_columns, int64_t first_row, int64_t column_stride,
                  float *columns)
{
    _Alignas(64) float lines[4 * 2 * (PS_MAX_LINE / 2 + 1)];
    const int64_t row = 2 * parts * length;
    for (int64_t r = 0; r < n_rows; r += 4) {
        int64_t n = n_rows - r < 4 ? n_rows - r : 4;
        for (int64_t i = 0; i < n; i++) {
            const float *z = parts_fs + (r + i) * row;
            float *out = lines + 2 * i * n_columns;
            switch (parts) {
            case 1: join_row(z, 1, length, factors, n_columns, out); break;
            case 2: join_row(z, 2, length, factors, n_columns, out); break;
            case 3: join_row(z, 3, length, factors, n_columns, out); break;
            default: join_row(z, parts, length, factors, n_columns, out);
            }
        }
        transpose_rows(lines, n, n_columns, n_columns, first_row + r, column_stride, columns);
    }
}

/* Joins numbers first to end - 1 of a column, which are numbers first + shift onwards of its parts. */
PS_INLINE void join_run(const float *z, int64_t parts, int64_t length, const float *factors,
                        int64_t n, int64_t first, int64_t end, int64_t shift, float *out)
{
    int64_t k = first;
    for (; k + 8 <= end; k += 8) {
        eight_complex sum = {0};
        for (int64_t r = 0; r < parts; r++) {
            eight_complex part = *(const eight_complex *)(z + 2 * (r * length + k + shift));
            const float *f = factors + 4 * r * n + 2 * k;
            sum += part * *(const eight_complex *)f
                   + SWAP_PARTS(part) * *(const eight_complex *)(f + 2 * n);
        }
        *(eight_complex *)(out + 2 * k) = sum;
    }
    for (; k < end; k++) {
        float re = 0.0f, im = 0.0f;
        for (int64_t r = 0; r < parts; r++) {
            const float *part = z + 2 * (r * length + k + shift), *f = factors + 4 * r * n + 2 * k;
            re += part[0] * f[0] + part[1] * f[2 * n];
            im += part[1] * f[1] + part[0] * f[2 * n + 1];
        }
        out[2 * k] = re;
        out[2 * k + 1] = im;
    }
}

/* Joins the parts of every column at the n frequencies that are kept, in FFTW order: out[k] is the sum
 * over the parts of a[k] z[k]. Each factor comes as two pairs' worth of floats, (a, a) and (-a', a'). */
PS_CLONES
void ps_join_columns(const float *parts_fs, int64_t n_columns, int64_t parts, int64_t length,
                     const float *factors, int64_t n, float *columns)
{
    for (int64_t c = 0; c < n_columns; c++) {
        const float *z = parts_fs + 2 * c * parts * length;
        join_run(z, parts, length, factors, n, 0, n / 2, 0, columns + 2 * c * n);
        join_run(z, parts, length, factors, n, n / 2, n, length - n, columns + 2 * c * n);
    }
}

/* Folds half-complex rows of n / 2 + 1 numbers into n / 2, whose backward transform is the real row:
 * out[k] = a[k] z[k] + b[k] conj(z[n / 2 - k]), the factors laid out as for joining. */
PS_CLONES
void ps_fold_rows(const float *rows_fs, int64_t n_rows, int64_t n, const float *factors, float *rows)
{
    for (int64_t r = 0; r < n_rows; r++) {
        const float *z = rows_fs + r * (n + 2);
        float *out = rows + r * n;
        join_row(z, 1, n / 2, factors, n / 2, out);
        out[0] = z[0] + z[n]; /* of the first and the last only the real part counts */
        out[1] = z[0] - z[n];
    }
}
