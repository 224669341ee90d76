# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The compiled kernels: thin wrappers that check shapes, release the GIL and call C.

`FrameRunner` goes through all frames of a particle in one call.
"""

from libc.stdint cimport int32_t, int64_t
from libc.math cimport copysign, fabs, floor, sqrt
from libc.stdlib cimport calloc, free, malloc
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
                              and rows.shape[1] <= 65536)))
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
                 and columns.shape[0] <= 4097)


def join_rows(const float complex[:, :, ::1] parts_fs, const float[:, :, :, ::1] factors,
              int64_t first_row, float complex[:, :] columns):
    _need_joined(parts_fs, factors, first_row, columns)
    with nogil:
        ps_join_rows(<const float *>&parts_fs[0, 0, 0],
                     min(parts_fs.shape[0], columns.shape[1] - first_row), parts_fs.shape[1],
                     parts_fs.shape[2], &factors[0, 0, 0, 0], columns.shape[0], first_row,
                     columns.strides[0] // 8, <float *>&columns[0, 0])


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
    _need(0 < s <= 8192 and s % 2 == 0 and half == s // 2 + 1
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
    _need(0 < s <= 8192 and slice_fs.shape[0] == s // 2 + 1 and last_x.shape[0] == s
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


# ---- all frames of a particle in one call ---------------------------------------------------------

cdef enum:
    ROWS
    COLUMNS
    TO_COLUMNS
    TO_ROWS
    FROM_ROWS
    FROM_COLUMNS
    N_PLANS

cdef enum:
    DOES_NOT_FIT = -2  # -1: an image cannot be read

ctypedef struct frame_tables:
    # what is constant for a particle, at frame 0; NULL where there is none
    const double *kx
    const double *ky
    const double *ctf_phase
    double defocus_to_turns
    const float *gain
    const float *noise
    const double *even
    const float *odd
    const int32_t *last_x


cdef class ImageViews:
    """The tilt images of a tomogram, and the binned ones, as the kernels see them."""

    cdef ps_image *images
    cdef ps_image *binned
    cdef int64_t n_frames
    cdef list kept

    def __cinit__(self, image_bytes, modes, samples=None):
        cdef int64_t i
        self.kept = [list(image_bytes), list(() if samples is None else samples)]
        self.n_frames = len(self.kept[0])
        _need(len(modes) == self.n_frames and (samples is None or len(samples) == self.n_frames))
        # all zero, so that what is not there has no rows
        self.images = <ps_image *>calloc(self.n_frames + 1, sizeof(ps_image))
        self.binned = <ps_image *>calloc(self.n_frames + 1, sizeof(ps_image))
        if self.images == NULL or self.binned == NULL:
            raise MemoryError("no memory for the views of tilt images")
        for i, image in enumerate(self.kept[0]):
            if len(image):
                _view_image(image, modes[i], &self.images[i])
        for i, image in enumerate(self.kept[1]):
            if len(image):
                _view_binned(image, &self.binned[i])

    def __dealloc__(self):
        free(self.images)
        free(self.binned)


cdef class FrameRunner:
    """Does in one call, without the GIL, what `core.frame_loop.FrameLoop` does call by call."""

    cdef int64_t box, crop, window, prebin, edge, half, n_parts
    cdef double extent
    cdef bint apply_ctf, round_trip, is_odd, scales_whole_shift
    cdef float sign
    cdef object fill
    cdef const double[::1] gain
    cdef float[:, ::1] rows
    cdef float complex[:, :, ::1] parts
    cdef const float complex[:, :, ::1] parts_fs
    cdef const float[:, :, :, ::1] factors
    cdef float complex[:, :] window_rows
    cdef const float complex[:, ::1] columns
    cdef float complex[::1] ramp_x
    cdef float complex[::1] ramp_y
    cdef float complex[:, ::1] slice_fs
    cdef float[:, ::1] weight
    cdef float complex[:, :] columns_rs
    cdef float complex[:, ::1] pairs_fs
    cdef float complex[:, ::1] pairs_rs
    cdef float complex[:, :] gathered
    cdef float complex[:, ::1] masked_fs
    cdef const int32_t[::1] inside
    cdef double n_outside
    cdef bint subtract_mean
    cdef const float[:, ::1] taper
    cdef fftw_exe[N_PLANS] plans
    cdef list kept

    def __cinit__(self, loop):
        settings = loop.settings
        self.box, self.crop, self.half = settings.box, settings.crop, settings.box // 2 + 1
        self.window, self.prebin = settings.window, settings.prebin
        self.extent = settings.binning * settings.box
        self.scales_whole_shift = settings.window % 2 == 0 or settings.exact_scale
        self.apply_ctf, self.round_trip = settings.apply_ctf, settings.real_space_round_trip
        self.sign = loop.sign
        self.gain, self.ramp_x, self.ramp_y = loop.gain, loop.ramp_x, loop.ramp_y
        self.slice_fs, self.weight = loop.slice_fs, loop.weight
        self.columns, self.fill = loop.window.columns, loop.fill
        self.taper = None
        self.kept = []
        _need(self.box > 0 and self.box % 2 == 0 and self.box <= 8192
              and self.gain.shape[0] == self.half and self.ramp_x.shape[0] == self.half
              and self.ramp_y.shape[0] == self.box and self.columns.shape[0] == self.half
              and self.columns.shape[1] >= self.box)
        self._need_complex_slice(self.slice_fs)
        if self.weight is not None:
            _need_slice(self.weight, self.box)
        if self.fill is None:
            self._take_windows(loop.window)
        if self.round_trip:
            self._take_images(loop)

    cdef int _need_complex_slice(self, const float complex[:, ::1] slice_fs) except -1:
        return _need(slice_fs.shape[0] == self.half and slice_fs.shape[1] == self.box)

    cdef int _take_plan(self, int kind, FFTW plan, const void *source,
                        const void *target) except -1:
        _need(plan is not None)
        self.plans[kind] = plan.get_fftw_exe()
        self.kept.append(plan)
        return _need(self.plans[kind]._input_pointer == source
                     and self.plans[kind]._output_pointer == target)

    cdef int _take_windows(self, window) except -1:
        self.rows, self.parts, self.parts_fs = window.rows, window.parts, window.parts_fs
        self.factors, self.window_rows = window.factors, window.gathered
        self.n_parts, self.is_odd = self.parts.shape[1], self.rows.shape[1] % 2 == 1
        _need_joined(self.parts_fs, self.factors, 0, self.window_rows)
        _need(self.window_rows.shape[0] == self.half
              and self.window_rows.shape[1] == self.columns.shape[1]
              and self.rows.shape[1] * self.prebin == self.window
              and self.parts.shape[0] == self.rows.shape[0]
              and self.parts_fs.shape[0] == self.rows.shape[0]
              and self.parts_fs.shape[1] == self.n_parts
              and self.parts_fs.shape[2] == self.parts.shape[2]
              and self.n_parts * self.parts.shape[2] * (1 if self.is_odd else 2)
              == self.rows.shape[1] and self.rows.shape[1] <= 65536
              and (self.is_odd or <void *>&self.rows[0, 0] == <void *>&self.parts[0, 0, 0]))
        self._take_plan(ROWS, window.row_plan, &self.parts[0, 0, 0], &self.parts_fs[0, 0, 0])
        self._take_plan(COLUMNS, window.column_plan, &self.window_rows[0, 0], &self.columns[0, 0])
        return 0

    cdef int _take_images(self, loop) except -1:
        self.edge, mask = loop.edge, loop.mask
        self.columns_rs, self.pairs_fs, self.pairs_rs = loop.columns_rs, loop.pairs_fs, loop.pairs_rs
        _need_pairs(self.columns_rs, self.edge, self.pairs_fs)
        _need(self.pairs_fs.shape[1] == self.box and self.pairs_rs.shape[1] == self.box
              and self.pairs_rs.shape[0] == self.pairs_fs.shape[0])
        self._take_plan(TO_COLUMNS, loop.to_columns, &self.slice_fs[0, 0], &self.columns_rs[0, 0])
        self._take_plan(TO_ROWS, loop.to_rows, &self.pairs_fs[0, 0], &self.pairs_rs[0, 0])
        if mask is not None:
            self.inside, self.taper, self.n_outside = mask.inside, mask.taper, mask.n_outside
            self.subtract_mean = mask.subtract_mean
            _need_mask(self.pairs_rs, self.crop, self.inside, self.taper)
        if self.weight is not None:
            self.gathered, self.masked_fs = loop.gathered, loop.masked_fs
            _need_pairs(self.gathered, self.edge, self.pairs_fs)
            self._need_complex_slice(self.masked_fs)
            self._take_plan(FROM_ROWS, loop.from_rows, &self.pairs_rs[0, 0], &self.pairs_fs[0, 0])
            self._take_plan(FROM_COLUMNS, loop.from_columns, &self.gathered[0, 0],
                            &self.masked_fs[0, 0])
        return 0

    cdef void _place_window(self, const double[:, :] points, int64_t f, int64_t *corner,
                            double *cycles) noexcept nogil:
        cdef int64_t centre = self.window // 2, unsampled
        cdef double q, inside
        cdef int axis
        for axis in range(2):
            q = points[f, axis]
            corner[axis] = <int64_t>copysign(floor(fabs(q) + 0.5), q) - centre
            inside = q - corner[axis]
            if self.scales_whole_shift:
                cycles[axis] = inside / self.extent
            else:
                cycles[axis] = <double>centre / self.window + (inside - centre) / self.extent
            unsampled = -corner[axis] % self.prebin
            if unsampled < 0:  # the remainder is C's
                unsampled += self.prebin
            cycles[axis] = cycles[axis] - 0.5 - <double>unsampled / self.window

    cdef int64_t _transform_rows(self, const ps_image *image, const int64_t *corner) noexcept nogil:
        # how many pixels are not finite; negative if the image cannot be read
        cdef int64_t height = self.window_rows.shape[1], block = self.rows.shape[0]
        cdef int64_t first = 0, n_rows, found, n_bad = 0
        while first < height:
            n_rows = min(block, height - first)
            found = ps_copy_rows(image, corner[0], corner[1] + first, self.n_parts,
                                 self.rows.shape[1], n_rows, &self.rows[0, 0])
            if found < 0:
                return found
            n_bad += found
            self._join_rows(first, n_rows)
            first += n_rows
        return n_bad

    cdef void _join_rows(self, int64_t first, int64_t n_rows) noexcept nogil:
        cdef int64_t r, x
        if self.is_odd:
            for r in range(n_rows):
                for x in range(self.rows.shape[1]):
                    self.parts[r, 0, x].real = self.rows[r, x]
        execute_in_nogil(&self.plans[ROWS])
        ps_join_rows(<const float *>&self.parts_fs[0, 0, 0], n_rows, self.n_parts,
                     self.parts_fs.shape[2], &self.factors[0, 0, 0, 0], self.half, first,
                     self.window_rows.strides[0] // 8, <float *>&self.window_rows[0, 0])

    cdef int64_t _cut_binned(self, const ps_image *image, const ps_image *binned,
                             const ps_filter *filter, int64_t margin, float *scratch,
                             const int64_t *corner) noexcept nogil:
        cdef int64_t n = self.rows.shape[1], found
        if not _fits_binned(corner, margin, filter.factor, n, binned):
            return DOES_NOT_FIT
        found = ps_cut_binned(image, binned, filter, margin, corner[0], corner[1], n, scratch,
                              &self.rows[0, 0])
        if found >= 0:
            self._join_rows(0, n)
        return found

    cdef void _weight(self, const frame_tables *tables, int64_t f, double extra_defocus,
                      bint apply_ctf, bint with_weight) noexcept nogil:
        cdef int64_t table = f * self.half * self.box
        cdef const double *phase = tables.ctf_phase + 5 * f
        cdef double turns = tables.defocus_to_turns * extra_defocus
        cdef ps_ctf ctf = ps_ctf(phase[0], phase[1] + turns, phase[2], phase[3] + turns, phase[4])
        ps_weight_slice(<const float *>&self.columns[0, 0], self.columns.shape[1], self.box,
                        <const float *>&self.ramp_x[0], <const float *>&self.ramp_y[0], self.sign,
                        &ctf if apply_ctf else NULL, tables.kx, tables.ky, tables.gain + table,
                        tables.even, tables.odd,
                        NULL if tables.noise == NULL else tables.noise + table,
                        <float *>&self.slice_fs[0, 0],
                        &self.weight[0, 0] if with_weight else NULL)

    cdef void _to_real_space(self) noexcept nogil:
        # before the transform, which may overwrite the slice
        cdef double total = self.slice_fs[0, 0].real * <double>(self.box * self.box)
        execute_in_nogil(&self.plans[TO_COLUMNS])
        ps_pack_rows(<const float *>&self.columns_rs[0, self.edge],
                     self.columns_rs.strides[0] // 8, self.box, self.pairs_fs.shape[0],
                     <float *>&self.pairs_fs[0, 0])
        execute_in_nogil(&self.plans[TO_ROWS])
        if self.taper is not None:
            ps_mask_pairs(<float *>&self.pairs_rs[0, 0], self.box, self.crop,
                          self.pairs_rs.shape[0], total, &self.inside[0], self.n_outside,
                          self.subtract_mean, &self.taper[0, 0])

    cdef void _to_fourier_space(self) noexcept nogil:
        execute_in_nogil(&self.plans[FROM_ROWS])
        ps_unpack_rows(<const float *>&self.pairs_fs[0, 0], self.box, self.pairs_fs.shape[0],
                       self.gathered.strides[0] // 8, <float *>&self.gathered[0, self.edge])
        execute_in_nogil(&self.plans[FROM_COLUMNS])

    cdef void _crop(self, float *image) noexcept nogil:
        ps_crop_pairs(<const float *>&self.pairs_rs[0, 0], self.box, self.crop, image)

    cdef void _insert(self, const frame_tables *tables, int64_t f, const double[:, :, :] axes,
                      bint scaled, float[:, :, :, ::1] volume) noexcept nogil:
        cdef double[2][3] steps
        cdef double scale = 1
        cdef int a, c
        for a in range(2):
            for c in range(3):
                steps[a][c] = axes[f, a, c] * (<double>self.crop / self.box)
            if scaled:
                scale *= sqrt(steps[a][0] * steps[a][0] + steps[a][1] * steps[a][1]
                              + steps[a][2] * steps[a][2])
        ps_insert_slice(<const float *>(&self.masked_fs[0, 0] if self.round_trip
                                        else &self.slice_fs[0, 0]),
                        &self.weight[0, 0], self.box, tables.last_x + f * self.box,
                        steps[0], steps[1], scale, self.crop, &volume[0, 0, 0, 0])

    cdef int _need_volume(self, const float[:, :, :, ::1] volume) except -1:
        _need(self.weight is not None)
        return _need_packed(volume, self.crop)

    cdef int _need_images(self, float[:, :, ::1] images, int64_t n) except -1:
        return _need(self.round_trip and images.shape[0] == n and images.shape[1] == self.crop
                     and images.shape[2] == self.crop)

    cdef int _take_tables(self, tables, aberrations, int64_t n_frames,
                          frame_tables *taken) except -1:
        # the objects keep the arrays
        cdef const double[::1] kx = tables.kx
        cdef const double[::1] ky = tables.ky
        cdef const double[:, ::1] ctf_phase = tables.ctf_phase
        cdef const float[:, :, ::1] gain = tables.gain
        cdef const float[:, :, ::1] noise = tables.noise
        cdef const int32_t[:, ::1] last_x = tables.last_x
        cdef const double[:, ::1] even = aberrations.even_turns
        cdef const float complex[:, ::1] odd = aberrations.odd_factor
        _need(n_frames > 0 and kx.shape[0] == self.half and ky.shape[0] == self.box
              and ctf_phase.shape[0] == n_frames and ctf_phase.shape[1] == 5
              and last_x.shape[0] == n_frames and last_x.shape[1] == self.box)
        taken[0] = frame_tables(&kx[0], &ky[0], &ctf_phase[0, 0], tables.defocus_to_turns,
                                &gain[0, 0, 0], NULL, NULL, NULL, &last_x[0, 0])
        self._need_table(gain, n_frames)
        if noise is not None:
            self._need_table(noise, n_frames)
            taken.noise = &noise[0, 0, 0]
        if even is not None:
            _need(even.shape[0] == self.half and even.shape[1] == self.box)
            taken.even = &even[0, 0]
        if odd is not None:
            _need(odd.shape[0] == self.half and odd.shape[1] == self.box)
            taken.odd = <const float *>&odd[0, 0]
        return 0

    cdef int _need_table(self, const float[:, :, ::1] table, int64_t n_frames) except -1:
        return _need(table.shape[0] == n_frames and table.shape[1] == self.half
                     and table.shape[2] == self.box)

    def run(self, const int64_t[::1] frames, images, tables, view, aberrations, double scale,
            targets):
        cdef ImageViews views = images.views
        cdef const double[:, :] points = view.image_point
        cdef const double[:] extra_defocus = view.extra_defocus
        cdef const double[:, :, :] axes = view.slice_axes
        cdef const double[:, :, :] average_axes = None
        cdef float[:, :, :, ::1] volume = targets.volume
        cdef float[:, :, :, ::1] average = None
        cdef float[:, :, ::1] stack = targets.stack
        cdef float[:, :, ::1] without_ctf = targets.without_ctf
        cdef frame_tables taken
        cdef ps_filter filter
        cdef const float[::1] taps
        cdef float *scratch = NULL
        cdef int64_t[2] corner
        cdef double[2] cycles
        cdef int64_t n = frames.shape[0], margin = 0, i, f, found = 0, n_bad = 0
        cdef bint is_binned = images.binned is not None, inserts
        if n == 0:
            return 0
        self._take_tables(tables, aberrations, views.n_frames, &taken)
        _need(is_binned == (self.prebin > 1) and points.shape[0] == views.n_frames
              and points.shape[1] == 2 and extra_defocus.shape[0] == views.n_frames)
        for i in range(n):
            _need(0 <= frames[i] < views.n_frames and views.images[frames[i]].height > 0)
        if is_binned:
            taps, margin = images.binned.taps, images.binned.margin
            _view_filter(taps, images.binned.factor, &filter)
            _need(self.fill is None and filter.factor == self.prebin and margin % self.prebin == 0
                  and self.rows.shape[0] == self.rows.shape[1]
                  and self.window_rows.shape[1] == self.rows.shape[0]
                  and filter.factor * self.rows.shape[1] >= filter.taps)
        if volume is not None:
            self._need_volume(volume)
            _need_axes(axes, views.n_frames)
        if targets.average is not None:
            average, average_axes = targets.average.volume, targets.average.axes
            self._need_volume(average)
            _need_axes(average_axes, views.n_frames)
        if stack is not None:
            self._need_images(stack, n)
        if without_ctf is not None:
            self._need_images(without_ctf, n)
        inserts = volume is not None or average is not None
        if is_binned:
            scratch = _make_scratch(&filter, self.rows.shape[1])
        try:
            with nogil:
                for i in range(n):
                    f = frames[i]
                    self._place_window(points, f, corner, cycles)
                    if is_binned:
                        found = self._cut_binned(&views.images[f], &views.binned[f], &filter,
                                                 margin, scratch, corner)
                    elif self.fill is None:
                        found = self._transform_rows(&views.images[f], corner)
                    else:
                        with gil:
                            found = self.fill(images, view, f)
                    if found < 0:
                        break
                    n_bad += found
                    if self.fill is None:
                        execute_in_nogil(&self.plans[COLUMNS])
                    ps_make_ramps(cycles, &self.gain[0], self.box, scale,
                                  <float *>&self.ramp_x[0], <float *>&self.ramp_y[0])
                    self._weight(&taken, f, extra_defocus[f], self.apply_ctf, inserts)
                    if self.round_trip:
                        self._to_real_space()
                    if stack is not None:
                        self._crop(&stack[i, 0, 0])
                    if inserts and self.round_trip:
                        self._to_fourier_space()
                    if volume is not None:
                        self._insert(&taken, f, axes, True, volume)
                    if average is not None:
                        self._insert(&taken, f, average_axes, False, average)
                    if without_ctf is not None:
                        self._weight(&taken, f, 0, False, False)
                        self._to_real_space()
                        self._crop(&without_ctf[i, 0, 0])
        finally:
            free(scratch)
        _need(found != DOES_NOT_FIT)
        _need_image(found)
        return n_bad


cdef int _need_axes(const double[:, :, :] axes, int64_t n_frames) except -1:
    return _need(axes.shape[0] == n_frames and axes.shape[1] == 2 and axes.shape[2] == 3)
