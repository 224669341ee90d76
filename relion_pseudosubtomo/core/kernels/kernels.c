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

#define PS_MAX_LINE 8192     /* longest side of a binned box; checked by the callers */
#define PS_MAX_HALF (PS_MAX_LINE / 2 + 1)
#define PS_MAX_WINDOW 65536  /* longest side of a window whose rows are dealt out */
#define PS_ROWS_AHEAD 2      /* rows asked for before they are needed */
#define PS_LINE_GAP 16       /* keeps lines that stand side by side out of each other's cache sets */
#define PS_ENDS_AHEAD 12     /* the same, of rows of which only the ends are needed */
#define PS_STRIDE 16         /* samples whose coordinates are steps from one exact place */
#define PS_SAMPLES_AHEAD 16  /* voxels asked for before they are needed */

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

/* Deals the complex pairs of a row out to its parts: pair parts * j + r becomes number j of part r. */
static inline __attribute__((always_inline)) void deal_pairs(const double *line, int64_t parts,
                                                             int64_t length, double *out)
{
    for (int64_t r = 0; r < parts; r++)
        for (int64_t j = 0; j < length; j++) out[r * length + j] = line[parts * j + r];
}

/* Sets result to that of a call which reads an image; leaves it where the image cannot be read. */
#define PS_GUARDED(result, call) \
    do { \
        sigjmp_buf target; \
        if (sigsetjmp(target, 1) == 0) { \
            bus_target = &target; \
            result = (call); \
        } \
        bus_target = NULL; \
    } while (0)

static const char *row_of_image(const ps_image *image, int64_t y)
{
    return image->bytes + clamp(y, image->height) * image->row_bytes;
}

/* Copies n pixels of a row as float32; those outside the image repeat the nearest edge pixel. */
static inline __attribute__((always_inline)) void copy_pixels(const ps_image *image, int64_t y,
                                                              int64_t x, int64_t n, float *out)
{
    int64_t first = clamp(x, image->width), count = clamp(x + n - 1, image->width) - first + 1;
    int64_t left = first - x;
    if (left > n - 1) left = n - 1; /* all lie left of the image */
    if (left < 0) left = 0;
    convert(row_of_image(image, y) + first * size_of_mode(image->mode), image->mode, count, out + left);
    for (int64_t i = 0; i < left; i++) out[i] = out[left];
    for (int64_t i = left + count; i < n; i++) out[i] = out[left + count - 1];
}

/* Asks for n pixels of a row. */
static inline __attribute__((always_inline)) void prefetch_pixels(const ps_image *image, int64_t y,
                                                                  int64_t x, int64_t n)
{
    int64_t size = size_of_mode(image->mode);
    const char *first = row_of_image(image, y) + clamp(x, image->width) * size;
    const char *last = row_of_image(image, y) + clamp(x + n - 1, image->width) * size;
    for (; first < last; first += 64) __builtin_prefetch(first, 0, 2);
    __builtin_prefetch(last, 0, 2);
}

static inline __attribute__((always_inline)) int64_t count_not_finite(const float *values, int64_t n)
{
    int32_t bad = 0;
    for (int64_t i = 0; i < n; i++) bad += !(values[i] - values[i] == 0.0f); /* zero where finite */
    return bad;
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
        double *dealt = (double *)(rows + r * row_length);
        switch (parts) {
        case 1: break;
        case 2: deal_pairs((const double *)line, 2, row_length / 4, dealt); break;
        case 3: deal_pairs((const double *)line, 3, row_length / 6, dealt); break;
        default: deal_pairs((const double *)line, parts, row_length / (2 * parts), dealt);
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

/* Four complex values, each one 8-byte item, and eight as sixteen floats. */
typedef double four_items __attribute__((vector_size(32), aligned(8), may_alias));
typedef int64_t four_indices __attribute__((vector_size(32)));
typedef float eight_complex __attribute__((vector_size(64), aligned(4)));
typedef int32_t sixteen_indices __attribute__((vector_size(64)));

/* Writes the first n_columns complex values of each row into the columns, from first_row on. */
static inline __attribute__((always_inline)) void
transpose_rows(const float *rows, int64_t n_rows, int64_t row_stride, int64_t n_columns,
                       int64_t first_row, int64_t column_stride, float *columns)
{
    const double *in = (const double *)rows; /* one complex value moves as one 8-byte item */
    double *out = (double *)columns + first_row;
    const int64_t whole = n_columns - n_columns % 4;
    for (int64_t r = 0; r < n_rows; r += 4) {
        const double *i0 = in + r * row_stride;
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
            const four_indices low = {0, 4, 2, 6}, high = {1, 5, 3, 7};
            const four_indices first = {0, 1, 4, 5}, second = {2, 3, 6, 7};
            four_items ab0 = __builtin_shuffle(a, b, low), ab1 = __builtin_shuffle(a, b, high);
            four_items de0 = __builtin_shuffle(d, e, low), de1 = __builtin_shuffle(d, e, high);
            double *o = out + c * column_stride + r;
            *(four_items *)o = __builtin_shuffle(ab0, de0, first);
            *(four_items *)(o + column_stride) = __builtin_shuffle(ab1, de1, first);
            *(four_items *)(o + 2 * column_stride) = __builtin_shuffle(ab0, de0, second);
            *(four_items *)(o + 3 * column_stride) = __builtin_shuffle(ab1, de1, second);
        }
        for (int64_t c = whole; c < n_columns; c++)
            for (int64_t k = 0; k < 4; k++) out[c * column_stride + r + k] = i0[k * row_stride + c];
    }
}

/* Joins the transforms of a row's parts into the row's transform: out[k] is the sum over the parts of
 * a[k] z[k] + b[k] conj(z[-k]). Each complex factor comes as four pairs' worth of floats, laid out so
 * that a pair is multiplied as it lies in memory: (a, a), (-a', a'), (b, -b), (b', b') with ' for the
 * imaginary part. */
static inline __attribute__((always_inline)) void join_one(const float *z, int64_t parts,
                                                           int64_t length, const float *factors,
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

static inline __attribute__((always_inline)) void join_eight(const float *z, int64_t parts,
                                                             int64_t length, const float *factors,
                                                             int64_t n_columns, int64_t k,
                                                             float *out)
{
    const sixteen_indices swap = {1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14};
    const sixteen_indices turn = {15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0};
    eight_complex sum = {0};
    for (int64_t r = 0; r < parts; r++) {
        const float *f = factors + 8 * r * n_columns + 2 * k, *part = z + 2 * r * length;
        eight_complex near = *(const eight_complex *)(part + 2 * k);
        eight_complex far = *(const eight_complex *)(part + 2 * (length - k - 7));
        eight_complex turned = __builtin_shuffle(far, turn);
        sum += near * *(const eight_complex *)f
               + __builtin_shuffle(near, swap) * *(const eight_complex *)(f + 2 * n_columns);
        sum += __builtin_shuffle(turned, swap) * *(const eight_complex *)(f + 4 * n_columns)
               + turned * *(const eight_complex *)(f + 6 * n_columns);
    }
    *(eight_complex *)(out + 2 * k) = sum;
}

static inline __attribute__((always_inline)) void join_row(const float *z, int64_t parts,
                                                           int64_t length, const float *factors,
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
    _Alignas(64) float lines[4 * 2 * PS_MAX_HALF];
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

/* ---- prebinned images ------------------------------------------------------------------------ */

typedef float sixteen_floats __attribute__((vector_size(64), aligned(4), may_alias));

static int64_t wrap(int64_t i, int64_t n) { return i % n < 0 ? i % n + n : i % n; }

/* Samples of a line that are needed for n filtered ones at every q-th; a multiple of q. */
static int64_t line_length(const ps_filter *filter, int64_t n)
{
    return filter->factor * (n + (filter->taps - 1) / filter->factor);
}

int64_t ps_binning_scratch(const ps_filter *filter, int64_t n)
{
    /* two lines, the columns that mend both ends of a window, and one that they give */
    return (2 * filter->taps + 2) * (line_length(filter, n) + PS_LINE_GAP);
}

/* Adds up lines, each times its number of the filter. */
static inline __attribute__((always_inline)) void sum_lines(const float *const *lines,
                                                            const ps_filter *filter, int64_t n,
                                                            float *out)
{
    int64_t x = 0;
    for (; x + 16 <= n; x += 16) {
        sixteen_floats sum = {0};
        for (int64_t i = 0; i < filter->taps; i++)
            sum += *(const sixteen_floats *)(lines[i] + x) * filter->weights[i];
        *(sixteen_floats *)(out + x) = sum;
    }
    for (; x < n; x++) {
        float sum = 0.0f;
        for (int64_t i = 0; i < filter->taps; i++) sum += lines[i][x] * filter->weights[i];
        out[x] = sum;
    }
}

/* Deals a line out to its q phases: sample q j + r becomes number j of phase r. */
static inline __attribute__((always_inline)) void deal_phases(const float *line, int64_t q,
                                                              int64_t length, float *phases)
{
    for (int64_t r = 0; r < q; r++)
        for (int64_t j = 0; j < length; j++) phases[r * length + j] = line[q * j + r];
}

/* Filters lines across and along, at every q-th place: n values of one small line. */
static inline __attribute__((always_inline)) void filter_lines(const float *const *lines,
                                                               const ps_filter *filter, int64_t n,
                                                               float *scratch, float *out)
{
    const int64_t q = filter->factor, all = line_length(filter, n), length = all / q;
    const float *shifted[PS_MAX_TAPS];
    float *phases = scratch + all;
    sum_lines(lines, filter, all, scratch);
    switch (q) {
    case 2: deal_phases(scratch, 2, length, phases); break;
    case 3: deal_phases(scratch, 3, length, phases); break;
    default: deal_phases(scratch, q, length, phases);
    }
    for (int64_t i = 0; i < filter->taps; i++) shifted[i] = phases + i % q * length + i / q;
    sum_lines(shifted, filter, n, out);
}

/* Filters an image with the margin before it; a ring of lines holds what the filter covers. */
PS_CLONES
static int64_t bin_image(const ps_image *image, const ps_filter *filter, int64_t margin,
                         int64_t n_rows, int64_t n_columns, float *scratch, float *binned)
{
    const int64_t q = filter->factor, taps = filter->taps, length = line_length(filter, n_columns);
    const int64_t before = margin + taps / 2;
    const float *lines[PS_MAX_TAPS];
    float *ring = scratch + 2 * length;
    int64_t n_copied = 0, n_bad = 0;
    for (int64_t y = 0; y < n_rows; y++) {
        for (; n_copied < q * y + taps; n_copied++)
            copy_pixels(image, n_copied - before, -before, length, ring + n_copied % taps * length);
        for (int64_t i = 0; i < taps; i++) lines[i] = ring + (q * y + i) % taps * length;
        filter_lines(lines, filter, n_columns, scratch, binned + y * n_columns);
        n_bad += count_not_finite(binned + y * n_columns, n_columns);
    }
    return n_bad;
}

int64_t ps_bin_image(const ps_image *image, const ps_filter *filter, int64_t margin, int64_t n_rows,
                     int64_t n_columns, float *scratch, float *binned)
{
    volatile int64_t n_bad = -1;
    PS_GUARDED(n_bad, bin_image(image, filter, margin, n_rows, n_columns, scratch, binned));
    return n_bad;
}

/* One axis of a window: its corner, the pixel of its first sample, and which of its n samples lie so
 * near to its ends that the filter reaches past them: `count` from `start` on, the last followed by
 * the first. They need `width` pixels from `from` on, the window's ends joined to a ring. */
typedef struct {
    int64_t corner, size, first, start, count, from, width;
} window_axis;

static window_axis make_axis(const ps_filter *filter, int64_t corner, int64_t n)
{
    const int64_t q = filter->factor, reach = filter->taps / 2;
    window_axis axis = {.corner = corner, .size = q * n, .first = wrap(-corner, q)};
    axis.start = (axis.size - reach - axis.first + q - 1) / q;
    axis.count = n - axis.start + (reach - axis.first + q - 1) / q;
    axis.from = axis.first + q * axis.start - reach;
    axis.width = q * (axis.count - 1) + filter->taps;
    return axis;
}

/* Copies n pixels of a window's row, taken as a ring, from a place on. */
static inline __attribute__((always_inline)) void copy_ring(const ps_image *image,
                                                            const window_axis *axis, int64_t y,
                                                            int64_t from, int64_t n, float *out)
{
    while (n > 0) {
        int64_t place = wrap(from, axis->size);
        int64_t run = n < axis->size - place ? n : axis->size - place;
        copy_pixels(image, y, axis->corner + place, run, out);
        from += run;
        out += run;
        n -= run;
    }
}

/* Asks for the pixels of a row at both ends of a window. */
static inline __attribute__((always_inline)) void prefetch_ends(const ps_image *image,
                                                                const window_axis *axis, int64_t y)
{
    int64_t before = axis->size - axis->from;
    prefetch_pixels(image, y, axis->corner + axis->from, before);
    prefetch_pixels(image, y, axis->corner, axis->width - before);
}

/* Replaces the samples of a window's first and last columns. */
static inline __attribute__((always_inline)) void
mend_columns(const ps_image *image, const ps_filter *filter, const window_axis *x_axis,
             const window_axis *y_axis, int64_t n, float *scratch, float *window)
{
    const int64_t q = filter->factor, length = line_length(filter, n), stride = length + PS_LINE_GAP;
    const int64_t from = y_axis->first - filter->taps / 2;
    const float *lines[PS_MAX_TAPS];
    float *row = scratch, *strip = scratch + 2 * length, *column = strip + x_axis->width * stride;
    for (int64_t r = 0; r < length; r++) {
        int64_t y = y_axis->corner + wrap(from + r, y_axis->size);
        prefetch_ends(image, x_axis, y + PS_ENDS_AHEAD);
        copy_ring(image, x_axis, y, x_axis->from, x_axis->width, row);
        for (int64_t i = 0; i < x_axis->width; i++) strip[i * stride + r] = row[i];
    }
    for (int64_t e = 0; e < x_axis->count; e++) {
        for (int64_t i = 0; i < filter->taps; i++) lines[i] = strip + (q * e + i) * stride;
        filter_lines(lines, filter, n, scratch, column);
        for (int64_t y = 0; y < n; y++) window[y * n + (x_axis->start + e) % n] = column[y];
    }
}

/* Replaces the samples of a window's first and last rows. */
static inline __attribute__((always_inline)) void
mend_rows(const ps_image *image, const ps_filter *filter, const window_axis *x_axis,
          const window_axis *y_axis, int64_t n, float *scratch, float *window)
{
    const int64_t q = filter->factor, length = line_length(filter, n);
    const float *lines[PS_MAX_TAPS];
    float *strip = scratch + 2 * length;
    for (int64_t r = 0; r < y_axis->width; r++)
        copy_ring(image, x_axis, y_axis->corner + wrap(y_axis->from + r, y_axis->size),
                  x_axis->first - filter->taps / 2, length, strip + r * length);
    for (int64_t e = 0; e < y_axis->count; e++) {
        for (int64_t i = 0; i < filter->taps; i++) lines[i] = strip + (q * e + i) * length;
        filter_lines(lines, filter, n, scratch, window + (y_axis->start + e) % n * n);
    }
}

PS_CLONES
static int64_t cut_binned(const ps_image *image, const ps_image *binned, const ps_filter *filter,
                          int64_t margin, int64_t corner_x, int64_t corner_y, int64_t n,
                          float *scratch, float *window)
{
    const int64_t q = filter->factor;
    const window_axis x_axis = make_axis(filter, corner_x, n), y_axis = make_axis(filter, corner_y, n);
    copy_rows(binned, (corner_x + x_axis.first + margin) / q, (corner_y + y_axis.first + margin) / q, 1,
              n, n, window);
    mend_columns(image, filter, &x_axis, &y_axis, n, scratch, window);
    mend_rows(image, filter, &x_axis, &y_axis, n, scratch, window);
    return 0;
}

int64_t ps_cut_binned(const ps_image *image, const ps_image *binned, const ps_filter *filter,
                      int64_t margin, int64_t corner_x, int64_t corner_y, int64_t n, float *scratch,
                      float *window)
{
    volatile int64_t failed = -1;
    PS_GUARDED(failed, cut_binned(image, binned, filter, margin, corner_x, corner_y, n, scratch, window));
    return failed;
}

/* ---- shifts, CTF and weights ------------------------------------------------------------------ */

/* Fills factor gain exp(2 pi i cycles k), k = 0 .. n - 1: a few powers of one step in float64, each then
 * multiplied by their number of steps again and again. */
static inline __attribute__((always_inline)) void make_ramp(double cycles, const double *gain,
                                                            int64_t n, double factor, float *ramp)
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

/* ---- real rows, two by two -------------------------------------------------------------------- */

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

/* ---- Fourier insertion ----------------------------------------------------------------------- */

/* Four floats of a packed voxel (re, im, weight, multiplicity), and the voxels at x and x + 1. */
typedef float packed_voxels __attribute__((vector_size(32), aligned(4)));

/* Samples of one half of a slice's column, ready to be added to the volume. The odd length keeps the
 * arrays out of each other's cache sets. */
#define PS_SAMPLES (PS_MAX_LINE / 2 + 16)
typedef struct {
    int32_t offset[PS_SAMPLES];               /* of the first voxel; -1: out of reach */
    float value[PS_SAMPLES][4];
    float near[PS_SAMPLES], far[PS_SAMPLES];  /* shares of x and x + 1 */
    float corner[4][PS_SAMPLES];              /* shares of (z, y), (z, y + 1), (z + 1, y), ... */
} sample_line;

/* Volume coordinates as whole numbers of 2^-bits voxels: floor is a shift, and a vector holds twice as
 * many as in float64. They are computed in float64 for every sixteenth sample; the steps from there are
 * rounded, once each, so no coordinate is further off than 2^-bits. */
typedef struct {
    int bits;
    int32_t step[3][PS_STRIDE];
    double u[3], v[3];
} fixed_axes;

/* Returns 0 where the axes are too long, or no numbers: nothing of such a slice lies in a volume. */
static int make_fixed_axes(const double *u, const double *v, int64_t s, fixed_axes *result)
{
    fixed_axes axes;
    double reach = 2.0;
    for (int i = 0; i < 3; i++) {
        double side = 2.0 + 0.5 * (double)s * (fabs(u[i]) + fabs(v[i]));
        if (!(side < 1e6)) return 0;
        if (side > reach) reach = side;
    }
    axes.bits = 28;
    while (reach * (double)(1 << axes.bits) > (double)INT32_MAX) axes.bits--;
    for (int i = 0; i < 3; i++) {
        axes.u[i] = u[i] * (double)(1 << axes.bits);
        axes.v[i] = v[i] * (double)(1 << axes.bits);
        for (int j = 0; j < PS_STRIDE; j++) axes.step[i][j] = (int32_t)lrint(j * axes.v[i]);
    }
    *result = axes;
    return 1;
}

/* Computes the samples (x, y0) to (x, y0 + count - 1) of a slice, at most PS_STRIDE. */
static inline __attribute__((always_inline)) void
make_few_samples(sample_line *line, int64_t first, int64_t count, const float *restrict slice,
                 const float *restrict weight, const int32_t *restrict last_x, int64_t x, int64_t y0,
                 const fixed_axes *axes, float scale, int64_t n)
{
    const int32_t border = (int32_t)(n / 2 + 1), bits = axes->bits, mask = (1 << bits) - 1;
    const int32_t row = (int32_t)(n / 2 + 2), plane = (int32_t)(n + 3) * row;
    const float unit = 1.0f / (float)(1 << bits), even = (x + y0) & 1 ? -1.0f : 1.0f;
    const double dx = (double)x, dy = (double)y0;
    const int32_t x_start = (int32_t)lrint(dx * axes->u[0] + dy * axes->v[0]);
    const int32_t y_start = (int32_t)lrint(dx * axes->u[1] + dy * axes->v[1]);
    const int32_t z_start = (int32_t)lrint(dx * axes->u[2] + dy * axes->v[2]);
    int32_t *restrict offset = line->offset + first;
    float *restrict near = line->near + first, *restrict far = line->far + first;
    float *restrict c0 = line->corner[0] + first, *restrict c1 = line->corner[1] + first;
    float *restrict c2 = line->corner[2] + first, *restrict c3 = line->corner[3] + first;
    float(*restrict value)[4] = line->value + first;
    for (int64_t i = 0; i < count; i++) {
        int32_t gx = x_start + axes->step[0][i], gy = y_start + axes->step[1][i],
                gz = z_start + axes->step[2][i];
        int32_t side = gx >> 31; /* -1 where the point has to be mirrored */
        gx = (gx ^ side) - side;
        gy = (gy ^ side) - side;
        gz = (gz ^ side) - side;
        int32_t ix = gx >> bits, iy = (gy >> bits) + border, iz = (gz >> bits) + border;
        float fx = (float)(gx & mask) * unit, fy = (float)(gy & mask) * unit,
              fz = (float)(gz & mask) * unit;
        int reached = (ix < border) & (iy >= 0) & (iy < 2 * border) & (iz >= 0) & (iz < 2 * border)
                      & ((int32_t)x <= last_x[i]);
        offset[i] = reached ? iz * plane + iy * row + ix : -1;
        far[i] = fx * scale;
        near[i] = scale - fx * scale;
        c0[i] = (1.0f - fz) * (1.0f - fy);
        c1[i] = (1.0f - fz) * fy;
        c2[i] = fz * (1.0f - fy);
        c3[i] = fz * fy;
    }
    for (int64_t i = 0; i < count; i++) {
        float sign = i & 1 ? -even : even;
        value[i][0] = slice[2 * i] * sign;
        value[i][1] = slice[2 * i + 1] * (x_start + axes->step[0][i] < 0 ? -sign : sign);
        value[i][2] = weight[i];
        value[i][3] = 1.0f;
    }
}

static inline __attribute__((always_inline)) void
make_samples(sample_line *line, const float *slice, const float *weight, const int32_t *last_x,
             int64_t x, int64_t y0, int64_t count, const fixed_axes *axes, float scale, int64_t n)
{
    int64_t i = 0;
    for (; i + PS_STRIDE <= count; i += PS_STRIDE)
        make_few_samples(line, i, PS_STRIDE, slice + 2 * i, weight + i, last_x + i, x, y0 + i, axes,
                         scale, n);
    make_few_samples(line, i, count - i, slice + 2 * i, weight + i, last_x + i, x, y0 + i, axes,
                     scale, n);
    for (i = count; i < count + PS_SAMPLES_AHEAD; i++) line->offset[i] = 0;
}

static inline __attribute__((always_inline)) void add_sample(const sample_line *line, int64_t i,
                                                             int64_t row, int64_t plane,
                                                             float *volume)
{
    if (line->offset[i] < 0) return;
    const float *ahead = volume + 4 * (int64_t)line->offset[i + PS_SAMPLES_AHEAD];
    __builtin_prefetch(ahead, 1);
    __builtin_prefetch(ahead + plane, 1);
    const float *v = line->value[i], near = line->near[i], far = line->far[i];
    packed_voxels pair = {v[0], v[1], v[2], v[3], v[0], v[1], v[2], v[3]};
    packed_voxels share = {near, near, near, near, far, far, far, far};
    pair *= share;
    float *voxel = volume + 4 * (int64_t)line->offset[i];
    *(packed_voxels *)voxel += pair * line->corner[0][i];
    *(packed_voxels *)(voxel + row) += pair * line->corner[1][i];
    *(packed_voxels *)(voxel + plane) += pair * line->corner[2][i];
    *(packed_voxels *)(voxel + plane + row) += pair * line->corner[3][i];
}

/* Adds one slice to the packed volume (spec 2.8). The volume has n + 3 planes of n + 3 rows of
 * n/2 + 2 voxels, index (n/2 + 1 + j_z, n/2 + 1 + j_y, j_x): one voxel more on each side than are
 * kept, so the eight neighbours of every point in reach need no test. Neighbouring samples often add
 * to one voxel, and each such addition waits for the last; the two halves of a column, which lie far
 * apart, take turns. */
PS_CLONES
void ps_insert_slice(const float *slice, const float *weight, int64_t s, const int32_t *last_x,
                     const double *u, const double *v, double scale, int64_t n, float *volume)
{
    sample_line up, down;
    fixed_axes axes;
    if (!make_fixed_axes(u, v, s, &axes)) return;
    const int64_t row = (n / 2 + 2) * 4, plane = (n + 3) * row;
    for (int64_t x = 0; x <= s / 2; x++) {
        int64_t reach = (int64_t)floor(sqrt((double)(s * s / 4 - x * x)));
        int64_t n_up = reach < s / 2 - 1 ? reach + 1 : s / 2, n_down = x == 0 ? 0 : reach, k = x * s;
        make_samples(&up, slice + 2 * k, weight + k, last_x, x, 0, n_up, &axes, (float)scale, n);
        k += s - n_down;
        make_samples(&down, slice + 2 * k, weight + k, last_x + s - n_down, x, -n_down, n_down, &axes,
                     (float)scale, n);
        int64_t both = n_up < n_down ? n_up : n_down;
        for (int64_t i = 0; i < both; i++) {
            add_sample(&up, i, row, plane, volume);
            add_sample(&down, i, row, plane, volume);
        }
        for (int64_t i = both; i < n_up; i++) add_sample(&up, i, row, plane, volume);
        for (int64_t i = both; i < n_down; i++) add_sample(&down, i, row, plane, volume);
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
 * centre), weight and multiplicity in FFTW order, and clears it for the next particle, row by row. */
PS_CLONES
void ps_unpack_volume(float *volume, int64_t n, float scale, int64_t plane, float *data,
                      float *weight, float *multiplicity)
{
    const int64_t half = n / 2 + 1, border = half;
    mirror_first_plane(volume, n);
    for (int64_t iz = 0; iz < n + 3; iz++) {
        for (int64_t iy = 0; iy < n + 3; iy++) {
            float *restrict in = volume + (iz * (n + 3) + iy) * (half + 1) * 4;
            int64_t jz = iz - border, jy = iy - border;
            if (jz >= -n / 2 && jz < n / 2 && jy >= -n / 2 && jy < n / 2) {
                int64_t z = jz < 0 ? jz + n : jz, y = jy < 0 ? jy + n : jy;
                float *restrict d = data + 2 * (z * plane + y * half);
                float *restrict w = weight + (z * n + y) * half;
                float *restrict m = multiplicity + (z * n + y) * half;
                float sign = (z + y) & 1 ? -scale : scale;
                for (int64_t x = 0; x < half; x++) {
                    float signed_scale = x & 1 ? -sign : sign;
                    d[2 * x] = in[4 * x] * signed_scale;
                    d[2 * x + 1] = in[4 * x + 1] * signed_scale;
                    w[x] = in[4 * x + 2];
                    m[x] = in[4 * x + 3];
                }
            }
            memset(in, 0, (size_t)((half + 1) * 4) * sizeof(float));
        }
    }
}

/* The transform of the finished real volume is Hermitian in its last plane, x = n/2; what was inserted
 * need not be. */
static void make_last_plane_hermitian(float *data, int64_t n, int64_t plane)
{
    int64_t half = n / 2 + 1;
    for (int64_t z = 0; z <= n / 2; z++) {
        for (int64_t y = 0; y < n; y++) {
            int64_t mz = (n - z) % n, my = (n - y) % n;
            float *a = data + 2 * (z * plane + y * half + n / 2);
            float *b = data + 2 * (mz * plane + my * half + n / 2);
            float re = 0.5f * (a[0] + b[0]), im = 0.5f * (a[1] - b[1]);
            a[0] = b[0] = re;
            a[1] = im;
            b[1] = -im;
        }
    }
}

/* Multiplies data, weight and multiplicity by the cone weight (spec 2.9). */
void ps_weight_cone(float *data, float *weight, float *multiplicity, int64_t n, int64_t plane,
                    const double *rotation, double slope, double sig0)
{
    const double *a = rotation;
    make_last_plane_hermitian(data, n, plane);
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
                float *d = data + 2 * (z * plane + y * (n / 2 + 1) + x);
                d[0] *= m;
                d[1] *= m;
                weight[i] *= m;
                multiplicity[i] *= m;
            }
        }
    }
}
