/* How kernels read the pixels of tilt images. */
#ifndef PSEUDOSUBTOMO_PIXELS_H
#define PSEUDOSUBTOMO_PIXELS_H

#include <setjmp.h>
#include <stddef.h>

#include "instruction_sets.h"
#include "kernels.h"

#define PS_ROWS_AHEAD 2 /* rows asked for before they are needed */

/* Converts n pixels of a MRC mode to float32. */
void ps_convert_pixels(const char *source, int mode, int64_t n, float *out);

/* A mapped image that is truncated, or lost by its file system, raises SIGBUS where it is read. While
 * a guarded call reads that becomes an error of this one image; elsewhere it ends the process as ever.
 * No compiler sees that reading can call the handler, so the fences keep the reads between them. */
extern __thread sigjmp_buf *volatile ps_bus_target;

/* Sets result to that of a call which reads an image; leaves it where the image cannot be read. */
#define PS_GUARDED(result, call) \
    do { \
        sigjmp_buf target; \
        if (sigsetjmp(target, 1) == 0) { \
            ps_bus_target = &target; \
            __atomic_signal_fence(__ATOMIC_SEQ_CST); \
            result = (call); \
            __atomic_signal_fence(__ATOMIC_SEQ_CST); \
        } \
        ps_bus_target = NULL; \
    } while (0)

PS_INLINE int64_t size_of_mode(int mode)
{
    return mode == PS_FLOAT32 ? 4 : mode == PS_INT8 ? 1 : 2;
}

PS_INLINE int64_t clamp(int64_t i, int64_t n) { return i < 0 ? 0 : i >= n ? n - 1 : i; }

PS_INLINE const char *row_of_image(const ps_image *image, int64_t y)
{
    return image->bytes + clamp(y, image->height) * image->row_bytes;
}

/* Copies n pixels of a row as float32; those outside the image repeat the nearest edge pixel. */
PS_INLINE void copy_pixels(const ps_image *image, int64_t y, int64_t x, int64_t n, float *out)
{
    int64_t first = clamp(x, image->width), count = clamp(x + n - 1, image->width) - first + 1;
    int64_t left = first - x;
    if (left > n - 1) left = n - 1; /* all lie left of the image */
    if (left < 0) left = 0;
    const char *source = row_of_image(image, y) + first * size_of_mode(image->mode);
    ps_convert_pixels(source, image->mode, count, out + left);
    for (int64_t i = 0; i < left; i++) out[i] = out[left];
    for (int64_t i = left + count; i < n; i++) out[i] = out[left + count - 1];
}

/* Asks for n pixels of a row. */
PS_INLINE void prefetch_pixels(const ps_image *image, int64_t y, int64_t x, int64_t n)
{
    int64_t size = size_of_mode(image->mode);
    const char *first = row_of_image(image, y) + clamp(x, image->width) * size;
    const char *last = row_of_image(image, y) + clamp(x + n - 1, image->width) * size;
    for (; first < last; first += 64) __builtin_prefetch(first, 0, 2);
    __builtin_prefetch(last, 0, 2);
}

PS_INLINE int64_t count_not_finite(const float *values, int64_t n)
{
    int32_t bad = 0;
    for (int64_t i = 0; i < n; i++) bad += !(values[i] - values[i] == 0.0f); /* zero where finite */
    return bad;
}

#endif
