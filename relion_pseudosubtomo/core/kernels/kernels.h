/* Inner loops of the extraction. Half-complex slices are stored [kx][ky] (kx = 0..s/2 slowest, ky in
 * FFT order fastest) because column transforms are twice as fast on contiguous columns; complex
 * numbers are interleaved float32 pairs. Nothing here allocates, and nothing touches Python. */
#ifndef PSEUDOSUBTOMO_KERNELS_H
#define PSEUDOSUBTOMO_KERNELS_H

#include <stdint.h>

/* Data types of tilt images, numbered as MRC modes. */
enum { PS_INT8 = 0, PS_INT16 = 1, PS_FLOAT32 = 2, PS_UINT16 = 6, PS_FLOAT16 = 12 };

/* A tilt image, its pixels of a MRC mode. */
typedef struct {
    const char *bytes;
    int mode;
    int64_t height, width, row_bytes;
} ps_image;

/* Checked by the callers: longest side of a binned box, of a window, longest filter. */
enum { PS_MAX_LINE = 8192, PS_MAX_WINDOW = 65536, PS_MAX_TAPS = 128 };

/* A symmetric filter of an odd number of taps, of which every factor-th result is wanted. */
typedef struct {
    int64_t factor, taps;
    const float *weights;
} ps_filter;

/* Coefficients of the CTF phase in turns: constant, kx^2, kx ky, ky^2, k^4 (k in 1/A). */
typedef struct { double constant, xx, xy, yy, k4; } ps_ctf;

/* ---- pixels.c ---------------------------------------------------------------------------------- */

/* Installs the handler that lets all that read an image survive a mapped file that is truncated. */
void ps_catch_bus_errors(void);

/* ---- windows.c --------------------------------------------------------------------------------- */

/* Returns -1 where the image cannot be read, as all that read one. */
int64_t ps_copy_rows(const ps_image *image, int64_t corner_x, int64_t corner_y, int64_t parts,
                     int64_t row_length, int64_t n_rows, float *rows);

void ps_join_rows(const float *parts_fs, int64_t n_rows, int64_t parts, int64_t length,
                  const float *factors, int64_t n_columns, int64_t first_row, int64_t column_stride,
                  float *columns);

void ps_join_columns(const float *parts_fs, int64_t n_columns, int64_t parts, int64_t length,
                     const float *factors, int64_t n, float *columns);

void ps_fold_rows(const float *rows_fs, int64_t n_rows, int64_t n, const float *factors, float *rows);

/* ---- prebinning.c ------------------------------------------------------------------------------ */

/* Floats of scratch that the two that follow need, for small lines of n samples. */
int64_t ps_binning_scratch(const ps_filter *filter, int64_t n);

int64_t ps_bin_image(const ps_image *image, const ps_filter *filter, int64_t margin, int64_t n_rows,
                     int64_t n_columns, float *scratch, float *binned);

int64_t ps_cut_binned(const ps_image *image, const ps_image *binned, const ps_filter *filter,
                      int64_t margin, int64_t corner_x, int64_t corner_y, int64_t n, float *scratch,
                      float *window);

/* ---- weighting.c ------------------------------------------------------------------------------- */

/* Fills gain exp(2 pi i cycles k) along x, k = 0 .. s/2, and factor times that along y, s numbers in FFT
 * order; cycles are those along x and y. */
void ps_make_ramps(const double *cycles, const double *gain, int64_t s, double factor, float *ramp_x,
                   float *ramp_y);

void ps_weight_slice(const float *columns, int64_t column_length, int64_t s, const float *ramp_x,
                     const float *ramp_y, float sign, const ps_ctf *ctf, const double *kx,
                     const double *ky, const float *gain, const double *even, const float *odd,
                     const float *noise, float *slice, float *weight);

/* ---- real_rows.c ------------------------------------------------------------------------------- */

void ps_pack_rows(const float *columns, int64_t column_stride, int64_t s, int64_t n_pairs,
                  float *pairs);

void ps_unpack_rows(const float *pairs, int64_t s, int64_t n_pairs, int64_t column_stride,
                    float *columns);

void ps_mask_pairs(float *pairs, int64_t s, int64_t n, int64_t n_pairs, double total,
                   const int32_t *inside, double n_outside, int subtract, const float *taper);

void ps_crop_pairs(const float *pairs, int64_t s, int64_t n, float *image);

/* ---- insertion.c ------------------------------------------------------------------------------- */

void ps_insert_slice(const float *slice, const float *weight, int64_t s, const int32_t *last_x,
                     const double *u, const double *v, double scale, int64_t n, float *volume);

/* In these two data has planes of that many complex numbers, at least n * (n / 2 + 1). */
void ps_unpack_volume(float *volume, int64_t n, float scale, int64_t plane, float *data, float *weight,
                      float *multiplicity);

void ps_weight_cone(float *data, float *weight, float *multiplicity, int64_t n, int64_t plane,
                    const double *rotation, double slope, double sig0);

/* ---- cube.c ------------------------------------------------------------------------------------- */

void ps_transpose(const float *source, int64_t n_rows, int64_t n_columns, int64_t source_stride,
                  int64_t target_stride, float *target);

/* ---- noise.c ------------------------------------------------------------------------------------ */

void ps_add_power(const float *columns, int64_t n_columns, int64_t column_stride, int64_t n,
                  double *power);

#endif
