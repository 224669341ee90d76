# All frames of a particle in one call; part of _compiled.pyx.

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
    cdef float complex[:, ::1] columns
    cdef const float complex[:, :, ::1] column_parts_fs
    cdef const float[:, :, :, ::1] column_factors
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
        _need(self.box > 0 and self.box % 2 == 0 and self.box <= PS_MAX_LINE
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
        self.kept.append(plan)
        return _take_plan(plan, source, target, &self.plans[kind])

    cdef int _take_windows(self, window) except -1:
        self.rows, self.parts, self.parts_fs = window.rows, window.parts, window.parts_fs
        self.factors, self.window_rows = window.factors, window.gathered
        self.n_parts, self.is_odd = self.parts.shape[1], self.rows.shape[1] % 2 == 1
        _need_joined(self.parts_fs, self.factors, 0, self.window_rows)
        _need(self.window_rows.shape[0] == self.half
              and self.rows.shape[1] * self.prebin == self.window
              and self.parts.shape[0] == self.rows.shape[0]
              and self.parts_fs.shape[0] == self.rows.shape[0]
              and self.parts_fs.shape[1] == self.n_parts
              and self.parts_fs.shape[2] == self.parts.shape[2]
              and self.n_parts * self.parts.shape[2] * (1 if self.is_odd else 2)
              == self.rows.shape[1] and self.rows.shape[1] <= PS_MAX_WINDOW
              and (self.is_odd or <void *>&self.rows[0, 0] == <void *>&self.parts[0, 0, 0]))
        self._take_plan(ROWS, window.row_plan, &self.parts[0, 0, 0], &self.parts_fs[0, 0, 0])
        return self._take_columns(window)

    cdef int _take_columns(self, window) except -1:
        self.column_parts_fs = window.column_parts_fs
        if self.column_parts_fs is None:
            _need(self.window_rows.shape[1] == self.columns.shape[1])
            return self._take_plan(COLUMNS, window.column_plan, &self.window_rows[0, 0],
                                   &self.columns[0, 0])
        self.column_factors = window.column_factors
        _need_joined_columns(self.column_parts_fs, self.column_factors, self.columns)
        _need(self.column_parts_fs.shape[1] * self.column_parts_fs.shape[2]
              == self.window_rows.shape[1])
        return self._take_plan(COLUMNS, window.column_plan, &self.window_rows[0, 0],
                               &self.column_parts_fs[0, 0, 0])

    cdef void _transform_columns(self) noexcept nogil:
        execute_in_nogil(&self.plans[COLUMNS])
        if self.column_parts_fs is not None:
            ps_join_columns(<const float *>&self.column_parts_fs[0, 0, 0], self.half,
                            self.column_parts_fs.shape[1], self.column_parts_fs.shape[2],
                            &self.column_factors[0, 0, 0, 0], self.columns.shape[1],
                            <float *>&self.columns[0, 0])

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

    cdef void _insert_all(self, const frame_tables *tables, int64_t f,
                          const double[:, :, :] axes, float[:, :, :, ::1] volume,
                          const double[:, :, :] average_axes,
                          float[:, :, :, ::1] average) noexcept nogil:
        if self.round_trip and (volume is not None or average is not None):
            self._to_fourier_space()
        if volume is not None:
            self._insert(tables, f, axes, True, volume)
        if average is not None:
            self._insert(tables, f, average_axes, False, average)

    cdef int _need_filter(self, const ps_filter *filter, int64_t margin) except -1:
        return _need(self.fill is None and filter.factor == self.prebin
                     and margin % self.prebin == 0
                     and self.rows.shape[0] == self.rows.shape[1]
                     and self.window_rows.shape[1] == self.rows.shape[0]
                     and filter.factor * self.rows.shape[1] >= filter.taps)

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
        cdef float[:, :, :, ::1] nothing = None
        cdef frame_tables taken
        cdef ps_filter filter
        cdef const float[::1] taps
        cdef float *scratch = NULL
        cdef int64_t[2] corner
        cdef double[2] cycles
        cdef int64_t n = frames.shape[0], margin = 0, i, f, found = 0, n_bad = 0
        cdef bint is_binned = images.binned is not None
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
            self._need_filter(&filter, margin)
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
                        self._transform_columns()
                    ps_make_ramps(cycles, &self.gain[0], self.box, scale,
                                  <float *>&self.ramp_x[0], <float *>&self.ramp_y[0])
                    self._weight(&taken, f, extra_defocus[f], self.apply_ctf,
                                 volume is not None or average is not None)
                    if self.round_trip:
                        self._to_real_space()
                    if stack is not None:
                        self._crop(&stack[i, 0, 0])
                    # one image with NaN would spoil the average of all
                    self._insert_all(&taken, f, axes, volume, average_axes,
                                     average if found == 0 else nothing)
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
