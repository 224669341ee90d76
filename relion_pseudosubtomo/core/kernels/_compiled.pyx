# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The compiled kernels: thin wrappers that check shapes, release the GIL and call C."""

from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, malloc
from pyfftw.pyfftw cimport FFTW, execute_in_nogil, fftw_exe

cdef extern from "kernels.h" nogil:
    enum:
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


ps_catch_bus_errors()

#: Frames of one call.
cdef enum:
    MOST_FRAMES = 64

class _Shape(ValueError):
    """An array that does not fit the others; only a bug can cause it."""


cdef int _need(bint fits) except -1:
    if not fits:
        raise _Shape("kernel called with arrays that do not fit together")
    return 0


cdef int _prepare(FFTW plan, const void *source, const void *target, fftw_exe *prepared) except -1:
    # NULL: an array that the kernel does not know
    prepared._plan = NULL
    if plan is not None:
        prepared[0] = plan.get_fftw_exe()
        _need((source == NULL or prepared._input_pointer == source)
              and (target == NULL or prepared._output_pointer == target))
    return 0


cdef inline void _execute(fftw_exe *prepared) noexcept nogil:
    if prepared._plan != NULL:
        execute_in_nogil(prepared)


cdef int _need_frames(const int64_t[::1] frames, int64_t n_frames, int64_t most) except -1:
    cdef int64_t i
    _need(0 < frames.shape[0] <= most)
    for i in range(frames.shape[0]):
        _need(0 <= frames[i] < n_frames)
    return 0


cdef int _need_table(const float[:, :, ::1] table, const int64_t[::1] frames, int64_t half,
                     int64_t s) except -1:
    _need_frames(frames, table.shape[0], frames.shape[0])
    return _need(table.shape[1] == half and table.shape[2] == s)


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


cdef int _need_image(int64_t found) except -1:
    if found < 0:
        raise OSError("a tilt image can no longer be read: its file was truncated or lost")
    return 0


cdef int _view_windows(list images, modes, const int64_t[:, ::1] corners, float[:, :, ::1] rows,
                       int64_t parts, ps_image *views) except -1:
    cdef int64_t k = len(images), i
    _need(0 < k <= MOST_FRAMES and len(modes) == k and corners.shape[0] == k
          and corners.shape[1] == 2 and rows.shape[0] >= k and rows.shape[1] > 0
          and rows.shape[2] > 0
          and (parts == 1 or (parts > 1 and rows.shape[2] % (2 * parts) == 0
                              and rows.shape[2] <= 65536)))
    for i in range(k):
        _view_image(images[i], modes[i], &views[i])  # the list keeps it
    return 0


cdef int64_t _copy_rows(const ps_image *views, int64_t k, const int64_t[:, ::1] corners,
                        int64_t first_row, int64_t n_rows, float[:, :, ::1] rows,
                        int64_t parts) noexcept nogil:
    # how many pixels are not finite; negative if an image cannot be read
    cdef int64_t i, found, n_bad = 0
    for i in range(k):
        found = ps_copy_rows(&views[i], corners[i, 0], corners[i, 1] + first_row, parts,
                             rows.shape[2], n_rows, &rows[i, 0, 0])
        if found < 0:
            return found
        n_bad += found
    return n_bad


def copy_rows(list images, modes, const int64_t[:, ::1] corners, int64_t first_row,
              float[:, :, ::1] rows, int64_t parts=1):
    cdef int64_t k = len(images), n_bad
    cdef ps_image[MOST_FRAMES] views
    _view_windows(images, modes, corners, rows, parts, views)
    with nogil:
        n_bad = _copy_rows(views, k, corners, first_row, rows.shape[1], rows, parts)
    _need_image(n_bad)
    return n_bad


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


def cut_binned(list images, modes, list binned, const int64_t[:, ::1] corners,
               const float[::1] taps, int64_t factor, int64_t margin, float[:, :, ::1] windows):
    cdef int64_t k = len(images), n = windows.shape[1], i, j, found = 0, size
    cdef ps_image[MOST_FRAMES] views
    cdef ps_image[MOST_FRAMES] small
    cdef const float[:, ::1] pixels
    cdef ps_filter filter
    _view_filter(taps, factor, &filter)
    _need(0 < k <= MOST_FRAMES and len(modes) == k and len(binned) == k and corners.shape[0] == k
          and corners.shape[1] == 2 and windows.shape[0] >= k and windows.shape[2] == n
          and margin % factor == 0 and factor * n >= taps.shape[0])
    for i in range(k):
        _view_image(images[i], modes[i], &views[i])
        pixels = binned[i]
        small[i] = ps_image(<const char *>&pixels[0, 0], 2, pixels.shape[0], pixels.shape[1],
                            4 * pixels.shape[1])
        for j in range(2):
            size = pixels.shape[1 - j]
            _need(corners[i, j] + margin >= 0
                  and (corners[i, j] + margin + factor - 1) // factor + n <= size)
    cdef float *scratch = _make_scratch(&filter, n)
    with nogil:
        for i in range(k):
            found = ps_cut_binned(&views[i], &small[i], &filter, margin, corners[i, 0],
                                  corners[i, 1], n, scratch, &windows[i, 0, 0])
            if found < 0:
                break
        free(scratch)
    _need_image(found)


cdef int _need_joined(const float complex[:, :, :, ::1] parts_fs,
                      const float[:, :, :, ::1] factors, int64_t first_row,
                      float complex[:, :, :] columns, int64_t k) except -1:
    return _need(columns.shape[0] >= k > 0 and parts_fs.shape[0] >= k and columns.strides[2] == 8
                 and 0 <= first_row < columns.shape[2] and parts_fs.shape[1] > 0
                 and parts_fs.shape[2] > 0 and parts_fs.shape[3] > 0
                 and factors.shape[0] == parts_fs.shape[2] and factors.shape[1] == 4
                 and factors.shape[2] == columns.shape[1] and factors.shape[3] == 2
                 and columns.shape[1] <= 4097)


cdef void _join_rows(const float complex[:, :, :, ::1] parts_fs,
                     const float[:, :, :, ::1] factors, int64_t first_row, int64_t n_rows,
                     float complex[:, :, :] columns, int64_t k) noexcept nogil:
    cdef int64_t i
    for i in range(k):
        ps_join_rows(<const float *>&parts_fs[i, 0, 0, 0], n_rows, parts_fs.shape[2],
                     parts_fs.shape[3], &factors[0, 0, 0, 0], columns.shape[1], first_row,
                     columns.strides[1] // 8, <float *>&columns[i, 0, 0])


def join_rows(const float complex[:, :, :, ::1] parts_fs, const float[:, :, :, ::1] factors,
              int64_t first_row, float complex[:, :, :] columns, FFTW before=None,
              FFTW after=None):
    cdef int64_t k = parts_fs.shape[0]
    cdef int64_t n_rows = min(parts_fs.shape[1], columns.shape[2] - first_row)
    cdef fftw_exe rows_plan, columns_plan
    _need_joined(parts_fs, factors, first_row, columns, k)
    _prepare(before, NULL, &parts_fs[0, 0, 0, 0], &rows_plan)
    _prepare(after, &columns[0, 0, 0], NULL, &columns_plan)
    with nogil:
        _execute(&rows_plan)
        _join_rows(parts_fs, factors, first_row, n_rows, columns, k)
        _execute(&columns_plan)


def transform_windows(list images, modes, const int64_t[:, ::1] corners, float[:, :, ::1] rows,
                      float complex[:, :, :, ::1] parts, FFTW row_plan not None,
                      const float complex[:, :, :, ::1] parts_fs,
                      const float[:, :, :, ::1] factors, float complex[:, :, :] columns,
                      FFTW column_plan not None):
    cdef int64_t k = len(images), width = rows.shape[2], height = columns.shape[2], first = 0
    cdef int64_t n_parts = parts.shape[2], block = rows.shape[1], i, r, x, n_rows
    cdef int64_t found = 0, n_bad = 0
    cdef bint is_odd = width % 2 == 1
    cdef ps_image[MOST_FRAMES] views
    cdef fftw_exe rows_prepared, columns_prepared
    _view_windows(images, modes, corners, rows, n_parts, views)
    _need_joined(parts_fs, factors, 0, columns, k)
    _need(parts.shape[0] >= k and parts.shape[1] == block and parts_fs.shape[1] == block
          and parts_fs.shape[2] == n_parts and parts_fs.shape[3] == parts.shape[3]
          and n_parts * parts.shape[3] == (width if is_odd else width // 2)
          and (is_odd or <void *>&rows[0, 0, 0] == <void *>&parts[0, 0, 0, 0]))
    _prepare(row_plan, &parts[0, 0, 0, 0], &parts_fs[0, 0, 0, 0], &rows_prepared)
    _prepare(column_plan, &columns[0, 0, 0], NULL, &columns_prepared)
    with nogil:
        while first < height and found >= 0:
            n_rows = min(block, height - first)
            found = _copy_rows(views, k, corners, first, n_rows, rows, n_parts)
            n_bad += found
            if is_odd:
                for i in range(k):
                    for r in range(n_rows):
                        for x in range(width):
                            parts[i, r, 0, x].real = rows[i, r, x]
            _execute(&rows_prepared)
            _join_rows(parts_fs, factors, first, n_rows, columns, k)
            first += n_rows
        _execute(&columns_prepared)
    _need_image(found)
    return n_bad


def fold_rows(const float complex[:, :, :] rows_fs, const float[:, :, ::1] factors,
              float complex[:, :, ::1] rows):
    cdef int64_t n_rows = rows.shape[1], half = rows.shape[2], i
    _need(n_rows > 0 and half > 0 and rows_fs.shape[0] == rows.shape[0]
          and rows_fs.shape[1] == n_rows and rows_fs.shape[2] == half + 1
          and rows_fs.strides[1] == 8 * (half + 1) and rows_fs.strides[2] == 8
          and factors.shape[0] == 4 and factors.shape[1] == half and factors.shape[2] == 2)
    with nogil:
        for i in range(rows.shape[0]):
            ps_fold_rows(<const float *>&rows_fs[i, 0, 0], n_rows, 2 * half, &factors[0, 0, 0],
                         <float *>&rows[i, 0, 0])


def weight_slices(const float complex[:, :, ::1] columns, const int64_t[::1] frames,
                  const float complex[:, ::1] ramp_x, const float complex[:, ::1] ramp_y,
                  float sign, const double[:, ::1] ctf, const double[::1] kx,
                  const double[::1] ky, const float[:, :, ::1] gain, const double[:, ::1] even,
                  const float complex[:, ::1] odd, const float[:, :, ::1] noise,
                  float complex[:, :, ::1] slices, float[:, :, ::1] weights):
    cdef int64_t k = frames.shape[0], half = slices.shape[1], s = slices.shape[2], i
    cdef const double *even_pointer = NULL
    cdef const float *odd_pointer = NULL
    _need(0 < k <= slices.shape[0] and half == s // 2 + 1 and s % 2 == 0 and s <= 8192
          and columns.shape[0] >= k and columns.shape[1] == half and columns.shape[2] >= s
          and ramp_x.shape[0] == k and ramp_x.shape[1] == half
          and ramp_y.shape[0] == k and ramp_y.shape[1] == s
          and kx.shape[0] == half and ky.shape[0] == s)
    if ctf is not None:
        _need(ctf.shape[0] == k and ctf.shape[1] == 5 and gain is not None)
        _need_table(gain, frames, half, s)
        if even is not None:
            _need(even.shape[0] == half and even.shape[1] == s)
            even_pointer = &even[0, 0]
    if odd is not None:
        _need(odd.shape[0] == half and odd.shape[1] == s)
        odd_pointer = <const float *>&odd[0, 0]
    if noise is not None:
        _need_table(noise, frames, half, s)
    if weights is not None:
        _need(weights.shape[0] >= k and weights.shape[1] == half and weights.shape[2] == s)
    with nogil:
        for i in range(k):
            ps_weight_slice(<const float *>&columns[i, 0, 0], columns.shape[2], s,
                            <const float *>&ramp_x[i, 0], <const float *>&ramp_y[i, 0], sign,
                            NULL if ctf is None else <const ps_ctf *>&ctf[i, 0], &kx[0], &ky[0],
                            NULL if ctf is None else &gain[frames[i], 0, 0], even_pointer,
                            odd_pointer, NULL if noise is None else &noise[frames[i], 0, 0],
                            <float *>&slices[i, 0, 0],
                            NULL if weights is None else &weights[i, 0, 0])


cdef int _need_pairs(const float complex[:, :, :] columns, int64_t first_row,
                     const float complex[:, :, ::1] pairs) except -1:
    # a pair may reach one row into the padding between columns
    return _need(0 < pairs.shape[0] <= columns.shape[0] and columns.strides[2] == 8
                 and first_row >= 0 and pairs.shape[1] > 0
                 and pairs.shape[2] == 2 * (columns.shape[1] - 1)
                 and first_row + 2 * pairs.shape[1] <= columns.strides[1] // 8)


def pack_rows(const float complex[:, :, :] columns, int64_t first_row,
              float complex[:, :, ::1] pairs, FFTW before=None, FFTW after=None):
    cdef int64_t i
    cdef fftw_exe columns_plan, rows_plan
    _need_pairs(columns, first_row, pairs)
    _prepare(before, NULL, &columns[0, 0, 0], &columns_plan)
    _prepare(after, &pairs[0, 0, 0], NULL, &rows_plan)
    with nogil:
        _execute(&columns_plan)
        for i in range(pairs.shape[0]):
            ps_pack_rows(<const float *>&columns[i, 0, first_row], columns.strides[1] // 8,
                         pairs.shape[2], pairs.shape[1], <float *>&pairs[i, 0, 0])
        _execute(&rows_plan)


def unpack_rows(const float complex[:, :, ::1] pairs, int64_t first_row,
                float complex[:, :, :] columns, FFTW before=None, FFTW after=None):
    cdef int64_t i
    cdef fftw_exe rows_plan, columns_plan
    _need_pairs(columns, first_row, pairs)
    _prepare(before, NULL, &pairs[0, 0, 0], &rows_plan)
    _prepare(after, &columns[0, 0, 0], NULL, &columns_plan)
    with nogil:
        _execute(&rows_plan)
        for i in range(pairs.shape[0]):
            ps_unpack_rows(<const float *>&pairs[i, 0, 0], pairs.shape[2], pairs.shape[1],
                           columns.strides[1] // 8, <float *>&columns[i, 0, first_row])
        _execute(&columns_plan)


def mask_pairs(float complex[:, :, ::1] pairs, int64_t n, const double[::1] totals,
               const int32_t[::1] inside, double n_outside, bint subtract,
               const float[:, ::1] taper):
    cdef int64_t k = pairs.shape[0], n_pairs = pairs.shape[1], s = pairs.shape[2], i
    _need(k > 0 and totals.shape[0] == k and n > 0 and n % 2 == 0 and n <= s
          and n <= 2 * n_pairs <= n + 2 and inside.shape[0] == n + 1 and taper.shape[0] == n
          and taper.shape[1] == n)
    with nogil:
        for i in range(k):
            ps_mask_pairs(<float *>&pairs[i, 0, 0], s, n, n_pairs, totals[i], &inside[0],
                          n_outside, subtract, &taper[0, 0])


def crop_pairs(const float complex[:, :, ::1] pairs, float[:, :, ::1] images):
    cdef int64_t s = pairs.shape[2], n = images.shape[1], i
    _need(0 < images.shape[0] <= pairs.shape[0] and n > 0 and n % 2 == 0 and images.shape[2] == n
          and n <= s and 2 * pairs.shape[1] >= n)
    with nogil:
        for i in range(images.shape[0]):
            ps_crop_pairs(<const float *>&pairs[i, 0, 0], s, n, &images[i, 0, 0])


def insert_slices(const float complex[:, :, ::1] slices, const float[:, :, ::1] weights,
                  const int64_t[::1] frames, const int32_t[:, ::1] last_x,
                  const double[:, :, ::1] axes, const double[::1] scales,
                  float[:, :, :, ::1] volume):
    cdef int64_t k = frames.shape[0], s = slices.shape[2], n = volume.shape[0] - 3, i, f
    _need_frames(frames, last_x.shape[0], slices.shape[0])
    _need(slices.shape[1] == s // 2 + 1 and s <= 8192
          and weights.shape[0] >= k and weights.shape[1] == s // 2 + 1 and weights.shape[2] == s
          and last_x.shape[1] == s and axes.shape[0] == last_x.shape[0] and axes.shape[1] == 2 and axes.shape[2] == 3
          and scales.shape[0] == last_x.shape[0]
          and volume.shape[1] == n + 3 and volume.shape[2] == n // 2 + 2
          and volume.shape[3] == 4 and volume.size < 8589934592)
    with nogil:
        for i in range(k):
            f = frames[i]
            ps_insert_slice(<const float *>&slices[i, 0, 0], &weights[i, 0, 0], s, &last_x[f, 0],
                            &axes[f, 0, 0], &axes[f, 1, 0], scales[f], n, &volume[0, 0, 0, 0])


def unpack_volume(float[:, :, :, ::1] volume, float scale, float complex[:, :, :] data,
                  float[:, :, ::1] weight, float[:, :, ::1] multiplicity):
    cdef int64_t n = volume.shape[0] - 3
    _need(volume.shape[1] == n + 3 and volume.shape[2] == n // 2 + 2 and volume.shape[3] == 4)
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
