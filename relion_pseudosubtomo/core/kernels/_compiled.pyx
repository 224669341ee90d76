# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The compiled kernels: thin wrappers that check shapes, release the GIL and call C.

`FrameRunner` (frame_runner.pxi) goes through all frames of a particle in one call.
"""

from libc.stdint cimport int32_t, int64_t
from libc.math cimport copysign, fabs, floor, sqrt
from libc.stdlib cimport calloc, free, malloc
from pyfftw.pyfftw cimport FFTW, execute_in_nogil, fftw_exe

cdef extern from "kernels.h" nogil:
    enum:
        PS_MAX_LINE
        PS_MAX_WINDOW
        PS_MAX_TAPS

    ctypedef struct ps_image:
        const char *bytes
        int mode
        int64_t height
        int64_t width
        int64_t row_bytes

    ctypedef struct ps_filter:
        int64_t factor
        int64_t taps
        const float *weights

    ctypedef struct ps_ctf:
        double constant
        double xx
        double xy
        double yy
        double k4

    void ps_catch_bus_errors()
    int64_t ps_copy_rows(const ps_image *image, int64_t corner_x, int64_t corner_y, int64_t parts,
                         int64_t row_length, int64_t n_rows, float *rows)
    int64_t ps_binning_scratch(const ps_filter *filter, int64_t n)
    int64_t ps_bin_image(const ps_image *image, const ps_filter *filter, int64_t margin,
                         int64_t n_rows, int64_t n_columns, float *scratch, float *binned)
    int64_t ps_cut_binned(const ps_image *image, const ps_image *binned, const ps_filter *filter,
                          int64_t margin, int64_t corner_x, int64_t corner_y, int64_t n,
                          float *scratch, float *window)
    void ps_join_rows(const float *parts_fs, int64_t n_rows, int64_t parts, int64_t length,
                      const float *factors, int64_t n_columns, int64_t first_row,
                      int64_t column_stride, float *columns)
    void ps_join_columns(const float *parts_fs, int64_t n_columns, int64_t parts, int64_t length,
                         const float *factors, int64_t n, float *columns)
    void ps_make_ramps(const double *cycles, const double *gain, int64_t s, double factor,
                       float *ramp_x, float *ramp_y)
    void ps_fold_rows(const float *rows_fs, int64_t n_rows, int64_t n, const float *factors,
                      float *rows)
    void ps_weight_slice(const float *columns, int64_t column_length, int64_t s,
                         const float *ramp_x, const float *ramp_y, float sign, const ps_ctf *ctf,
                         const double *kx, const double *ky, const float *gain,
                         const double *even, const float *odd, const float *noise,
                         float *slice, float *weight)
    void ps_pack_rows(const float *columns, int64_t column_stride, int64_t s, int64_t n_pairs,
                      float *pairs)
    void ps_unpack_rows(const float *pairs, int64_t s, int64_t n_pairs, int64_t column_stride,
                        float *columns)
    void ps_mask_pairs(float *pairs, int64_t s, int64_t n, int64_t n_pairs, double total,
                       const int32_t *inside, double n_outside, int subtract, const float *taper)
    void ps_crop_pairs(const float *pairs, int64_t s, int64_t n, float *image)
    void ps_insert_slice(const float *slice, const float *weight, int64_t s,
                         const int32_t *last_x, const double *u, const double *v, double scale,
                         int64_t n, float *volume)
    void ps_unpack_volume(float *volume, int64_t n, float scale, int64_t plane, float *data,
                          float *weight, float *multiplicity)
    void ps_weight_cone(float *data, float *weight, float *multiplicity, int64_t n, int64_t plane,
                        const double *rotation, double slope, double sig0)
    void ps_transpose(const float *source, int64_t n_rows, int64_t n_columns,
                      int64_t source_stride, int64_t target_stride, float *target)
    void ps_add_power(const float *columns, int64_t n_columns, int64_t column_stride, int64_t n,
                      double *power)


ps_catch_bus_errors()

class _Shape(ValueError):
    """An array that does not fit the others; only a bug can cause it."""


cdef int _need(bint fits) except -1:
    if not fits:
        raise _Shape("kernel called with arrays that do not fit together")
    return 0


cdef int _need_slice(const float[:, ::1] table, int64_t s) except -1:
    return _need(table.shape[0] == s // 2 + 1 and table.shape[1] == s)


cdef int _need_packed(const float[:, :, :, ::1] volume, int64_t n) except -1:
    return _need(volume.shape[0] == n + 3 and volume.shape[1] == n + 3
                 and volume.shape[2] == n // 2 + 2 and volume.shape[3] == 4
                 and volume.size < 8589934592)


cdef int _need_volumes(float complex[:, :, :] data, float[:, :, ::1] weight,
                       float[:, :, ::1] multiplicity, int64_t n) except -1:
    return _need(n > 0 and n % 2 == 0
                 and data.shape[0] == n and data.shape[1] == n and data.shape[2] == n // 2 + 1
                 and data.strides[0] >= n * data.strides[1] and data.strides[1] == 8 * (n // 2 + 1)
                 and data.strides[2] == 8
                 and weight.shape[0] == n and weight.shape[1] == n
                 and weight.shape[2] == n // 2 + 1
                 and multiplicity.shape[0] == n and multiplicity.shape[1] == n
                 and multiplicity.shape[2] == n // 2 + 1)


cdef int64_t _pixel_bytes(int mode) except -1:
    if mode not in (0, 1, 2, 6, 12):
        raise ValueError(f"image mode: expected 0, 1, 2, 6 or 12, found {mode}")
    return 4 if mode == 2 else 1 if mode == 0 else 2


cdef int _view_image(const unsigned char[:, ::1] image, int mode, ps_image *view) except -1:
    cdef int64_t item = _pixel_bytes(mode)
    _need(image.shape[0] > 0 and image.shape[1] >= item and image.shape[1] % item == 0)
    view[0] = ps_image(<const char *>&image[0, 0], mode, image.shape[0], image.shape[1] // item,
                       image.shape[1])
    return 0


cdef int _view_filter(const float[::1] taps, int64_t factor, ps_filter *view) except -1:
    _need(taps.shape[0] % 2 == 1 and factor > 1 and 2 * factor <= taps.shape[0] + 1
          and taps.shape[0] <= PS_MAX_TAPS)
    view[0] = ps_filter(factor, taps.shape[0], &taps[0])
    return 0


cdef float *_make_scratch(const ps_filter *filter, int64_t n) except NULL:
    cdef float *scratch = <float *>malloc(ps_binning_scratch(filter, n) * sizeof(float))
    if scratch == NULL:
        raise MemoryError("no memory to prebin a tilt image")
    return scratch


cdef bint _fits_binned(const int64_t *corner, int64_t margin, int64_t factor, int64_t n,
                       const ps_image *binned) noexcept nogil:
    return (corner[0] + margin >= 0 and corner[1] + margin >= 0
            and (corner[0] + margin + factor - 1) // factor + n <= binned.width
            and (corner[1] + margin + factor - 1) // factor + n <= binned.height)


cdef int _view_binned(const float[:, ::1] samples, ps_image *view) except -1:
    _need(samples.shape[0] > 0 and samples.shape[1] > 0)
    view[0] = ps_image(<const char *>&samples[0, 0], 2, samples.shape[0], samples.shape[1],
                       4 * samples.shape[1])
    return 0


cdef int _need_image(int64_t found) except -1:
    if found < 0:
        raise OSError("an image can no longer be read: its file was truncated or lost")
    return 0


cdef int _need_corner(const int64_t[::1] corner) except -1:
    return _need(corner.shape[0] == 2)


def copy_rows(const unsigned char[:, ::1] image, int mode, const int64_t[::1] corner,
              int64_t first_row, float[:, ::1] rows, int64_t parts=1):
    cdef ps_image view
    cdef int64_t found
    _view_image(image, mode, &view)
    _need_corner(corner)
    _need(rows.shape[0] > 0 and rows.shape[1] > 0
          and (parts == 1 or (parts > 1 and rows.shape[1] % (2 * parts) == 0
                              and rows.shape[1] <= PS_MAX_WINDOW)))
    with nogil:
        found = ps_copy_rows(&view, corner[0], corner[1] + first_row, parts, rows.shape[1],
                             rows.shape[0], &rows[0, 0])
    _need_image(found)
    return found


def bin_image(const unsigned char[:, ::1] image, int mode, const float[::1] taps, int64_t factor,
              int64_t margin, float[:, ::1] binned):
    cdef ps_image view
    cdef ps_filter filter
    cdef int64_t found
    _view_image(image, mode, &view)
    _view_filter(taps, factor, &filter)
    _need(margin >= 0 and binned.shape[0] > 0 and binned.shape[1] > 0)
    cdef float *scratch = _make_scratch(&filter, binned.shape[1])
    with nogil:
        found = ps_bin_image(&view, &filter, margin, binned.shape[0], binned.shape[1], scratch,
                             &binned[0, 0])
        free(scratch)
    _need_image(found)
    return found


def cut_binned(const unsigned char[:, ::1] image, int mode, const float[:, ::1] binned,
               const int64_t[::1] corner, const float[::1] taps, int64_t factor, int64_t margin,
               float[:, ::1] window):
    cdef int64_t n = window.shape[0], found
    cdef ps_image view
    cdef ps_image small
    cdef ps_filter filter
    _view_image(image, mode, &view)
    _view_binned(binned, &small)
    _view_filter(taps, factor, &filter)
    _need_corner(corner)
    _need(window.shape[1] == n and margin % factor == 0 and factor * n >= taps.shape[0]
          and _fits_binned(&corner[0], margin, factor, n, &small))
    cdef float *scratch = _make_scratch(&filter, n)
    with nogil:
        found = ps_cut_binned(&view, &small, &filter, margin, corner[0], corner[1], n, scratch,
                              &window[0, 0])
        free(scratch)
    _need_image(found)


cdef int _need_joined(const float complex[:, :, ::1] parts_fs, const float[:, :, :, ::1] factors,
                      int64_t first_row, float complex[:, :] columns) except -1:
    return _need(columns.shape[0] > 0 and columns.strides[1] == 8
                 and 0 <= first_row < columns.shape[1] and parts_fs.shape[0] > 0
                 and parts_fs.shape[1] > 0 and parts_fs.shape[2] > 0
                 and factors.shape[0] == parts_fs.shape[1] and factors.shape[1] == 4
                 and factors.shape[2] == columns.shape[0] and factors.shape[3] == 2
                 and columns.shape[0] <= PS_MAX_LINE // 2 + 1)


def join_rows(const float complex[:, :, ::1] parts_fs, const float[:, :, :, ::1] factors,
              int64_t first_row, float complex[:, :] columns):
    _need_joined(parts_fs, factors, first_row, columns)
    with nogil:
        ps_join_rows(<const float *>&parts_fs[0, 0, 0],
                     min(parts_fs.shape[0], columns.shape[1] - first_row), parts_fs.shape[1],
                     parts_fs.shape[2], &factors[0, 0, 0, 0], columns.shape[0], first_row,
                     columns.strides[0] // 8, <float *>&columns[0, 0])


cdef int _need_joined_columns(const float complex[:, :, ::1] parts_fs,
                              const float[:, :, :, ::1] factors,
                              const float complex[:, ::1] columns) except -1:
    return _need(parts_fs.shape[0] > 0 and parts_fs.shape[1] > 0
                 and columns.shape[0] == parts_fs.shape[0] and columns.shape[1] > 0
                 and columns.shape[1] % 2 == 0 and columns.shape[1] <= parts_fs.shape[2]
                 and factors.shape[0] == parts_fs.shape[1] and factors.shape[1] == 2
                 and factors.shape[2] == columns.shape[1] and factors.shape[3] == 2)


def join_columns(const float complex[:, :, ::1] parts_fs, const float[:, :, :, ::1] factors,
                 float complex[:, ::1] columns):
    _need_joined_columns(parts_fs, factors, columns)
    with nogil:
        ps_join_columns(<const float *>&parts_fs[0, 0, 0], parts_fs.shape[0], parts_fs.shape[1],
                        parts_fs.shape[2], &factors[0, 0, 0, 0], columns.shape[1],
                        <float *>&columns[0, 0])


cdef int _need_folded(const float complex[:, ::1] rows_fs, const float[:, :, ::1] factors,
                      const float complex[:, ::1] rows) except -1:
    cdef int64_t half = rows.shape[1]
    return _need(rows.shape[0] > 0 and half > 0 and rows_fs.shape[0] == rows.shape[0]
                 and rows_fs.shape[1] == half + 1 and factors.shape[0] == 4
                 and factors.shape[1] == half and factors.shape[2] == 2)


def fold_rows(const float complex[:, ::1] rows_fs, const float[:, :, ::1] factors,
              float complex[:, ::1] rows):
    _need_folded(rows_fs, factors, rows)
    with nogil:
        ps_fold_rows(<const float *>&rows_fs[0, 0], rows.shape[0], 2 * rows.shape[1],
                     &factors[0, 0, 0], <float *>&rows[0, 0])


def make_ramps(const double[::1] cycles, const double[::1] gain, double factor,
               float complex[::1] ramp_x, float complex[::1] ramp_y):
    cdef int64_t half = gain.shape[0], s = 2 * (half - 1)
    _need(half > 1 and cycles.shape[0] == 2 and ramp_x.shape[0] == half and ramp_y.shape[0] == s)
    with nogil:
        ps_make_ramps(&cycles[0], &gain[0], s, factor, <float *>&ramp_x[0], <float *>&ramp_y[0])


def weight_slice(const float complex[:, ::1] columns, const float complex[::1] ramp_x,
                 const float complex[::1] ramp_y, float sign, const double[::1] ctf,
                 const double[::1] kx, const double[::1] ky, const float[:, ::1] gain,
                 const double[:, ::1] even, const float complex[:, ::1] odd,
                 const float[:, ::1] noise, float complex[:, ::1] slice_fs, float[:, ::1] weight):
    cdef int64_t half = slice_fs.shape[0], s = slice_fs.shape[1]
    cdef const ps_ctf *ctf_pointer = NULL
    cdef const float *gain_pointer = NULL
    cdef const double *even_pointer = NULL
    cdef const float *odd_pointer = NULL
    cdef const float *noise_pointer = NULL
    cdef float *weight_pointer = NULL
    _need(0 < s <= PS_MAX_LINE and s % 2 == 0 and half == s // 2 + 1
          and columns.shape[0] == half and columns.shape[1] >= s
          and ramp_x.shape[0] == half and ramp_y.shape[0] == s
          and kx.shape[0] == half and ky.shape[0] == s)
    if ctf is not None:
        _need(ctf.shape[0] == 5 and gain is not None)
        _need_slice(gain, s)
        ctf_pointer, gain_pointer = <const ps_ctf *>&ctf[0], &gain[0, 0]
    if even is not None:
        _need(even.shape[0] == half and even.shape[1] == s)
        even_pointer = &even[0, 0]
    if odd is not None:
        _need(odd.shape[0] == half and odd.shape[1] == s)
        odd_pointer = <const float *>&odd[0, 0]
    if noise is not None:
        _need_slice(noise, s)
        noise_pointer = &noise[0, 0]
    if weight is not None:
        _need_slice(weight, s)
        weight_pointer = &weight[0, 0]
    with nogil:
        ps_weight_slice(<const float *>&columns[0, 0], columns.shape[1], s,
                        <const float *>&ramp_x[0], <const float *>&ramp_y[0], sign, ctf_pointer,
                        &kx[0], &ky[0], gain_pointer, even_pointer, odd_pointer, noise_pointer,
                        <float *>&slice_fs[0, 0], weight_pointer)


cdef int _need_pairs(const float complex[:, :] columns, int64_t first_row,
                     const float complex[:, ::1] pairs) except -1:
    # a pair may reach one row into the padding between columns
    return _need(columns.strides[1] == 8 and first_row >= 0 and pairs.shape[0] > 0
                 and pairs.shape[1] == 2 * (columns.shape[0] - 1)
                 and first_row + 2 * pairs.shape[0] <= columns.strides[0] // 8)


def pack_rows(const float complex[:, :] columns, int64_t first_row, float complex[:, ::1] pairs):
    _need_pairs(columns, first_row, pairs)
    with nogil:
        ps_pack_rows(<const float *>&columns[0, first_row], columns.strides[0] // 8,
                     pairs.shape[1], pairs.shape[0], <float *>&pairs[0, 0])


def unpack_rows(const float complex[:, ::1] pairs, int64_t first_row, float complex[:, :] columns):
    _need_pairs(columns, first_row, pairs)
    with nogil:
        ps_unpack_rows(<const float *>&pairs[0, 0], pairs.shape[1], pairs.shape[0],
                       columns.strides[0] // 8, <float *>&columns[0, first_row])


cdef int _need_mask(const float complex[:, ::1] pairs, int64_t n, const int32_t[::1] inside,
                    const float[:, ::1] taper) except -1:
    return _need(n > 0 and n % 2 == 0 and n <= pairs.shape[1] and n <= 2 * pairs.shape[0] <= n + 2
                 and inside.shape[0] == n + 1 and taper.shape[0] == n and taper.shape[1] == n)


def mask_pairs(float complex[:, ::1] pairs, int64_t n, double total, const int32_t[::1] inside,
               double n_outside, bint subtract, const float[:, ::1] taper):
    _need_mask(pairs, n, inside, taper)
    with nogil:
        ps_mask_pairs(<float *>&pairs[0, 0], pairs.shape[1], n, pairs.shape[0], total, &inside[0],
                      n_outside, subtract, &taper[0, 0])


def crop_pairs(const float complex[:, ::1] pairs, float[:, ::1] image):
    cdef int64_t s = pairs.shape[1], n = image.shape[0]
    _need(n > 0 and n % 2 == 0 and image.shape[1] == n and n <= s and 2 * pairs.shape[0] >= n)
    with nogil:
        ps_crop_pairs(<const float *>&pairs[0, 0], s, n, &image[0, 0])


def insert_slice(const float complex[:, ::1] slice_fs, const float[:, ::1] weight,
                 const int32_t[::1] last_x, const double[:, ::1] axes, double scale,
                 float[:, :, :, ::1] volume):
    cdef int64_t s = slice_fs.shape[1], n = volume.shape[0] - 3
    _need(0 < s <= PS_MAX_LINE and slice_fs.shape[0] == s // 2 + 1 and last_x.shape[0] == s
          and axes.shape[0] == 2 and axes.shape[1] == 3)
    _need_slice(weight, s)
    _need_packed(volume, n)
    with nogil:
        ps_insert_slice(<const float *>&slice_fs[0, 0], &weight[0, 0], s, &last_x[0], &axes[0, 0],
                        &axes[1, 0], scale, n, &volume[0, 0, 0, 0])


def unpack_volume(float[:, :, :, ::1] volume, float scale, float complex[:, :, :] data,
                  float[:, :, ::1] weight, float[:, :, ::1] multiplicity):
    cdef int64_t n = volume.shape[0] - 3
    _need_packed(volume, n)
    _need_volumes(data, weight, multiplicity, n)
    with nogil:
        ps_unpack_volume(&volume[0, 0, 0, 0], n, scale, data.strides[0] // 8,
                         <float *>&data[0, 0, 0], &weight[0, 0, 0], &multiplicity[0, 0, 0])


def weight_cone(float complex[:, :, :] data, float[:, :, ::1] weight,
                float[:, :, ::1] multiplicity, const double[:, ::1] rotation, double slope,
                double sig0):
    cdef int64_t n = data.shape[0]
    _need(rotation.shape[0] == 3 and rotation.shape[1] == 3)
    _need_volumes(data, weight, multiplicity, n)
    with nogil:
        ps_weight_cone(<float *>&data[0, 0, 0], &weight[0, 0, 0], &multiplicity[0, 0, 0], n,
                       data.strides[0] // 8, &rotation[0, 0], slope, sig0)


def add_power(const float complex[:, :] columns, double[:, ::1] power):
    _need(columns.shape[0] == power.shape[0] > 0 and columns.shape[1] == power.shape[1] > 0
          and columns.strides[1] == 8 and columns.strides[0] >= 8 * columns.shape[1])
    with nogil:
        ps_add_power(<const float *>&columns[0, 0], columns.shape[0], columns.strides[0] // 8,
                     columns.shape[1], &power[0, 0])


cdef int _take_plan(FFTW plan, const void *source, const void *target,
                    fftw_exe *taken) except -1:
    _need(plan is not None)
    taken[0] = plan.get_fftw_exe()
    return _need(taken._input_pointer == source and taken._output_pointer == target)


include "frame_runner.pxi"
include "cube_runner.pxi"
