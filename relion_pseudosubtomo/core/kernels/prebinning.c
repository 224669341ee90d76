#include "kernels.h"
#include "pixels.h"

#define PS_LINE_GAP 16   /* keeps lines that stand side by side out of each other's cache sets */
#define PS_ENDS_AHEAD 12 /* rows asked for before they are needed, where only their ends are */

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
PS_INLINE void sum_lines(const float *const *lines, const ps_filter *filter, int64_t n, float *out)
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
PS_INLINE void deal_phases(const float *line, int64_t q, int64_t length, float *phases)
{
    for (int64_t r = 0; r < q; r++)
        for (int64_t j = 0; j < length; j++) phases[r * length + j] = line[q * j + r];
}

/* Filters lines across and along, at every q-th place: n values of one small line. */
PS_INLINE void filter_lines(const float *const *lines, const ps_filter *filter, int64_t n,
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
PS_INLINE void copy_ring(const ps_image *image, const window_axis *axis, int64_t y, int64_t from,
                         int64_t n, float *out)
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
PS_INLINE void prefetch_ends(const ps_image *image, const window_axis *axis, int64_t y)
{
    int64_t before = axis->size - axis->from;
    prefetch_pixels(image, y, axis->corner + axis->from, before);
    prefetch_pixels(image, y, axis->corner, axis->width - before);
}

/* Replaces the samples of a window's first and last columns. */
PS_INLINE void mend_columns(const ps_image *image, const ps_filter *filter, const window_axis *x_axis,
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
PS_INLINE void mend_rows(const ps_image *image, const ps_filter *filter, const window_axis *x_axis,
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
    const int64_t x = (corner_x + x_axis.first + margin) / q, y = (corner_y + y_axis.first + margin) / q;
    for (int64_t r = 0; r < n; r++) {
        prefetch_pixels(binned, y + r + PS_ROWS_AHEAD, x, n);
        copy_pixels(binned, y + r, x, n, window + r * n);
    }
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
