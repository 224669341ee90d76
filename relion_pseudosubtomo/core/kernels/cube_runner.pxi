# A whole cube in one call; part of _compiled.pyx.

cdef class CubeRunner:
    """Does in one call, without the GIL, what `core.packed.CubeTransform` does call by call."""

    cdef int64_t n, half, block, plane
    cdef bint across
    cdef float complex[:, :, :] data_fs
    cdef float[:, :, ::1] data
    cdef float complex[:, :] lines
    cdef float complex[:, :] lines_fs
    cdef float complex[:, ::1] rows_fs
    cdef const float[:, :, ::1] factors
    cdef float complex[:, ::1] folded
    cdef float[:, ::1] rows
    cdef fftw_exe depth_plan
    cdef fftw_exe plane_plan
    cdef fftw_exe edge_plan
    cdef fftw_exe line_plan
    cdef fftw_exe row_plan
    cdef list kept

    def __cinit__(self, cube):
        cdef int64_t n = cube.data.shape[0], half = n // 2 + 1
        self.n, self.half, self.across = n, half, cube.line_plan is None
        self.data_fs, self.data = cube.data_fs, cube.data
        self.rows_fs, self.factors = cube.rows_fs, cube.factors
        self.folded, self.rows = cube.folded, cube.rows
        self.plane = self.data_fs.strides[0] // 8
        _need(n > 0 and n % 2 == 0 and self.data.shape[1] == n and self.data.shape[2] == n
              and self.data_fs.shape[0] == n and self.data_fs.shape[1] == n
              and self.data_fs.shape[2] == half and self.plane >= n * half
              and self.data_fs.strides[1] == 8 * half and self.data_fs.strides[2] == 8
              and self.rows_fs.shape[0] == n and self.rows_fs.shape[1] == half
              and self.rows.shape[0] == n and self.rows.shape[1] == n)
        _need_folded(self.rows_fs, self.factors, self.folded)
        self.kept = [cube.depth_plan, cube.plane_plan, cube.edge_plan, cube.line_plan, cube.row_plan]
        _take_plan(cube.row_plan, &self.folded[0, 0], &self.rows[0, 0], &self.row_plan)
        if self.across:
            _take_plan(cube.depth_plan, &self.data_fs[0, 0, 0], &self.data_fs[0, 0, 0],
                       &self.depth_plan)
            _take_plan(cube.plane_plan, &self.rows_fs[0, 0], &self.rows_fs[0, 0],
                       &self.plane_plan)
            _take_plan(cube.edge_plan, &self.rows_fs[0, half - 1], &self.rows_fs[0, half - 1],
                       &self.edge_plan)
            return
        self.lines, self.lines_fs, self.block = cube.lines, cube.lines_fs, cube.lines.shape[0]
        self._need_lines(self.lines)
        self._need_lines(self.lines_fs)
        _take_plan(cube.line_plan, &self.lines[0, 0], &self.lines_fs[0, 0], &self.line_plan)

    cdef int _need_lines(self, float complex[:, :] lines) except -1:
        return _need(lines.shape[0] == self.block > 0 and lines.shape[1] == self.n
                     and lines.strides[1] == 8 and lines.strides[0] >= 8 * self.n)

    cdef void _transform_lines(self, const float complex *source, int64_t source_stride,
                               float complex *target, int64_t target_stride) noexcept nogil:
        # the columns of n rows, which are so far apart, a block of columns at a time
        cdef int64_t x = 0, n_lines
        while x < self.half:
            n_lines = min(self.block, self.half - x)
            ps_transpose(<const float *>(source + x), self.n, n_lines, source_stride,
                         self.lines.strides[0] // 8, <float *>&self.lines[0, 0])
            execute_in_nogil(&self.line_plan)
            ps_transpose(<const float *>&self.lines_fs[0, 0], n_lines, self.n,
                         self.lines_fs.strides[0] // 8, target_stride, <float *>(target + x))
            x += n_lines

    cdef void _transform_depth(self) noexcept nogil:
        cdef int64_t y
        if self.across:
            execute_in_nogil(&self.depth_plan)
            return
        for y in range(self.n):
            self._transform_lines(&self.data_fs[0, y, 0], self.plane, &self.data_fs[0, y, 0],
                                  self.plane)

    cdef float complex *_transform_plane(self, float complex *plane) noexcept nogil:
        # where the rows along x are found
        if self.across:
            self.plane_plan._input_pointer = self.plane_plan._output_pointer = plane
            execute_in_nogil(&self.plane_plan)
            plane += self.half - 1
            self.edge_plan._input_pointer = self.edge_plan._output_pointer = plane
            execute_in_nogil(&self.edge_plan)
            return plane - (self.half - 1)
        self._transform_lines(plane, self.half, &self.rows_fs[0, 0], self.half)
        return &self.rows_fs[0, 0]

    def run(self):
        cdef int64_t z
        cdef float complex *rows
        with nogil:
            self._transform_depth()
            for z in range(self.n):
                rows = self._transform_plane(&self.data_fs[z, 0, 0])
                ps_fold_rows(<const float *>rows, self.n, self.n, &self.factors[0, 0, 0],
                             <float *>&self.folded[0, 0])
                self.row_plan._output_pointer = &self.data[z, 0, 0]
                execute_in_nogil(&self.row_plan)
