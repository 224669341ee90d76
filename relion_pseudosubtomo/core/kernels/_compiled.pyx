# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The compiled kernels: thin wrappers that check shapes, release the GIL and call C."""

from libc.stdint cimport int32_t, int64_t

cdef extern from "kernels.h" nogil:
    ctypedef struct ps_ctf:
        double constant
        double xx
        double xy
        double yy
        double k4

    void ps_catch_bus_errors()
    int64_t ps_copy_rows(const char *image, int mode, int64_t height, int64_t width,
                         int64_t row_bytes, int64_t corner_x, int64_t corner_y, int64_t step,
                         int64_t parts, int64_t row_length, int64_t n_rows, float *rows)
    void ps_transpose_rows(const float *rows, int64_t n_rows, int64_t row_stride,
                           int64_t n_columns, int64_t first_row, int64_t column_stride,
                           float *columns)
    void ps_join_rows(const float *parts_fs, int64_t n_rows, int64_t parts, int64_t length,
                      const float *factors, int64_t n_columns, int64_t first_row,
                      int64_t column_stride, float *columns)
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
    void ps_unpack_volume(float *volume, int64_t n, float scale, float *data, float *weight,
                          float *multiplicity)
    void ps_weight_cone(float *data, float *weight, float *multiplicity, int64_t n,
                        const double *rotation, double slope, double sig0)


ps_catch_bus_errors()


class _Shape(ValueError):
    """An array that does not fit the others; only a bug can cause it."""


cdef int _need(bint fits) except -1:
    if not fits:
        raise _Shape("kernel called with arrays that do not fit together")
    return 0


cdef int _need_volumes(float complex[:, :, ::1] data, float[:, :, ::1] weight,
                       float[:, :, ::1] multiplicity, int64_t n) except -1:
    return _need(n > 0 and n % 2 == 0
                 and data.shape[0] == n and data.shape[1] == n and data.shape[2] == n // 2 + 1
                 and weight.shape[0] == n and weight.shape[1] == n
                 and weight.shape[2] == n // 2 + 1
                 and multiplicity.shape[0] == n and multiplicity.shape[1] == n
                 and multiplicity.shape[2] == n // 2 + 1)


def copy_rows(const unsigned char[:, ::1] image_bytes, int mode, int64_t corner_x,
              int64_t corner_y, float[:, ::1] rows, int64_t step=1, int64_t parts=1):
    cdef int64_t item = 4 if mode == 2 else 1 if mode == 0 else 2
    cdef int64_t n_bad
    if mode not in (0, 1, 2, 6, 12):
        raise ValueError(f"image mode: expected 0, 1, 2, 6 or 12, found {mode}")
    _need(image_bytes.shape[0] > 0 and image_bytes.shape[1] >= item
          and image_bytes.shape[1] % item == 0 and rows.shape[0] > 0 and rows.shape[1] > 0
          and step > 0 and (parts == 1 or (parts > 1 and rows.shape[1] % (2 * parts) == 0
                                           and rows.shape[1] <= 65536)))
    with nogil:
        n_bad = ps_copy_rows(<const char *>&image_bytes[0, 0], mode, image_bytes.shape[0],
                             image_bytes.shape[1] // item, image_bytes.shape[1], corner_x,
                             corner_y, step, parts, rows.shape[1], rows.shape[0], &rows[0, 0])
    if n_bad < 0:
        raise OSError("a tilt image can no longer be read: its file was truncated or lost")
    return n_bad


def transpose_rows(const float complex[:, :] rows, int64_t first_row,
                   float complex[:, :] columns):
    cdef int64_t n_rows = min(rows.shape[0], columns.shape[1] - first_row)
    _need(columns.strides[1] == 8 and rows.strides[1] == 8 and first_row >= 0 and n_rows > 0 and columns.shape[0] <= rows.shape[1])
    with nogil:
        ps_transpose_rows(<const float *>&rows[0, 0], n_rows, rows.strides[0] // 8, columns.shape[0],
                          first_row, columns.strides[0] // 8, <float *>&columns[0, 0])


def join_rows(const float complex[:, :, ::1] parts_fs, const float[:, :, :, ::1] factors,
              int64_t first_row, float complex[:, :] columns):
    cdef int64_t n_rows = min(parts_fs.shape[0], columns.shape[1] - first_row)
    _need(columns.strides[1] == 8 and first_row >= 0 and n_rows > 0 and parts_fs.shape[1] > 0 and parts_fs.shape[2] > 0
          and factors.shape[0] == parts_fs.shape[1] and factors.shape[1] == 4
          and factors.shape[2] == columns.shape[0] and factors.shape[3] == 2
          and columns.shape[0] <= 4097)
    with nogil:
        ps_join_rows(<const float *>&parts_fs[0, 0, 0], n_rows, parts_fs.shape[1],
                     parts_fs.shape[2], &factors[0, 0, 0, 0], columns.shape[0], first_row,
                     columns.strides[0] // 8, <float *>&columns[0, 0])


def weight_slice(const float complex[:, ::1] columns, const float complex[::1] ramp_x,
                 const float complex[::1] ramp_y, float sign, ctf, const double[::1] kx,
                 const double[::1] ky, const float[:, ::1] gain, const double[:, ::1] even,
                 const float complex[:, ::1] odd, const float[:, ::1] noise,
                 float complex[:, ::1] slice_fs, float[:, ::1] weight):
    cdef int64_t s = slice_fs.shape[1], half = slice_fs.shape[0]
    cdef ps_ctf coefficients
    cdef const ps_ctf *ctf_pointer = NULL
    cdef const float *gain_pointer = NULL
    cdef const double *even_pointer = NULL
    cdef const float *odd_pointer = NULL
    cdef const float *noise_pointer = NULL
    cdef float *weight_pointer = NULL
    _need(half == s // 2 + 1 and s % 2 == 0 and s <= 8192 and columns.shape[0] == half
          and columns.shape[1] >= s and ramp_x.shape[0] == half and ramp_y.shape[0] == s
          and kx.shape[0] == half and ky.shape[0] == s)
    if ctf is not None:
        (coefficients.constant, coefficients.xx, coefficients.xy, coefficients.yy,
         coefficients.k4) = ctf
        ctf_pointer = &coefficients
        _need(gain is not None and gain.shape[0] == half and gain.shape[1] == s)
        gain_pointer = &gain[0, 0]
        if even is not None:
            _need(even.shape[0] == half and even.shape[1] == s)
            even_pointer = &even[0, 0]
    if odd is not None:
        _need(odd.shape[0] == half and odd.shape[1] == s)
        odd_pointer = <const float *>&odd[0, 0]
    if noise is not None:
        _need(noise.shape[0] == half and noise.shape[1] == s)
        noise_pointer = &noise[0, 0]
    if weight is not None:
        _need(weight.shape[0] == half and weight.shape[1] == s)
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


def mask_pairs(float complex[:, ::1] pairs, int64_t n, double total, const int32_t[::1] inside,
               double n_outside, bint subtract, const float[:, ::1] taper):
    cdef int64_t s = pairs.shape[1]
    _need(n > 0 and n % 2 == 0 and n <= s and 2 * pairs.shape[0] >= n
          and 2 * pairs.shape[0] <= n + 2 and inside.shape[0] == n + 1 and taper.shape[0] == n
          and taper.shape[1] == n)
    with nogil:
        ps_mask_pairs(<float *>&pairs[0, 0], s, n, pairs.shape[0], total, &inside[0], n_outside,
                      subtract, &taper[0, 0])


def crop_pairs(const float complex[:, ::1] pairs, float[:, ::1] image):
    cdef int64_t s = pairs.shape[1], n = image.shape[0]
    _need(n > 0 and n % 2 == 0 and image.shape[1] == n and n <= s and 2 * pairs.shape[0] >= n)
    with nogil:
        ps_crop_pairs(<const float *>&pairs[0, 0], s, n, &image[0, 0])


def insert_slice(const float complex[:, ::1] slice_fs, const float[:, ::1] weight,
                 const int32_t[::1] last_x, const double[::1] u, const double[::1] v,
                 double scale, float[:, :, :, ::1] volume):
    cdef int64_t s = slice_fs.shape[1], n = volume.shape[0] - 3
    _need(slice_fs.shape[0] == s // 2 + 1 and s <= 8192 and weight.shape[0] == s // 2 + 1
          and weight.shape[1] == s and last_x.shape[0] == s and u.shape[0] == 3
          and v.shape[0] == 3 and volume.shape[1] == n + 3 and volume.shape[2] == n // 2 + 2
          and volume.shape[3] == 4 and volume.size < 8589934592)
    with nogil:
        ps_insert_slice(<const float *>&slice_fs[0, 0], &weight[0, 0], s, &last_x[0], &u[0],
                        &v[0], scale, n, &volume[0, 0, 0, 0])


def unpack_volume(float[:, :, :, ::1] volume, float scale, float complex[:, :, ::1] data,
                  float[:, :, ::1] weight, float[:, :, ::1] multiplicity):
    cdef int64_t n = volume.shape[0] - 3
    _need(volume.shape[1] == n + 3 and volume.shape[2] == n // 2 + 2 and volume.shape[3] == 4)
    _need_volumes(data, weight, multiplicity, n)
    with nogil:
        ps_unpack_volume(&volume[0, 0, 0, 0], n, scale, <float *>&data[0, 0, 0],
                         &weight[0, 0, 0], &multiplicity[0, 0, 0])


def weight_cone(float complex[:, :, ::1] data, float[:, :, ::1] weight,
                float[:, :, ::1] multiplicity, const double[:, ::1] rotation, double slope,
                double sig0):
    cdef int64_t n = data.shape[0]
    _need(rotation.shape[0] == 3 and rotation.shape[1] == 3)
    _need_volumes(data, weight, multiplicity, n)
    with nogil:
        ps_weight_cone(<float *>&data[0, 0, 0], &weight[0, 0, 0], &multiplicity[0, 0, 0], n,
                       &rotation[0, 0], slope, sig0)
