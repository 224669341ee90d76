/* pyFFTW's Cython declarations include FFTW's header, which need not be installed: of FFTW itself the
 * kernels use nothing, plans are made and executed by pyFFTW. Its functions mention this one type. */
typedef struct {
    int n, is, os;
} fftw_iodim;
