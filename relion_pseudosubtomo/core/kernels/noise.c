#include "instruction_sets.h"
#include "kernels.h"

/* Adds the power of n complex numbers in each column; sums are kept in float64. */
PS_CLONES
void ps_add_power(const float *columns, int64_t n_columns, int64_t column_stride, int64_t n,
                  double *power)
{
    for (int64_t k = 0; k < n_columns; k++) {
        const float *in = columns + 2 * k * column_stride;
        double *out = power + k * n;
        for (int64_t i = 0; i < n; i++) {
            double re = in[2 * i], im = in[2 * i + 1];
            out[i] += re * re + im * im;
        }
    }
}
