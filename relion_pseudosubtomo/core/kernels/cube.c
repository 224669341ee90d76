#include "instruction_sets.h"
#include "kernels.h"

/* Complex numbers as they lie in memory, one and four. */
typedef int64_t one_complex __attribute__((may_alias));
typedef int64_t four_complex __attribute__((vector_size(32), aligned(8), may_alias));

/* Transposes 4 x 4 numbers. */
PS_INLINE void transpose_four(const one_complex *in, int64_t in_stride, one_complex *out,
                              int64_t out_stride)
{
    four_complex a = *(const four_complex *)in, b = *(const four_complex *)(in + in_stride),
                 c = *(const four_complex *)(in + 2 * in_stride),
                 d = *(const four_complex *)(in + 3 * in_stride);
    four_complex ab = PS_SHUFFLE(four_complex, a, b, 0, 4, 2, 6),
                 ba = PS_SHUFFLE(four_complex, a, b, 1, 5, 3, 7),
                 cd = PS_SHUFFLE(four_complex, c, d, 0, 4, 2, 6),
                 dc = PS_SHUFFLE(four_complex, c, d, 1, 5, 3, 7);
    *(four_complex *)out = PS_SHUFFLE(four_complex, ab, cd, 0, 1, 4, 5);
    *(four_complex *)(out + out_stride) = PS_SHUFFLE(four_complex, ba, dc, 0, 1, 4, 5);
    *(four_complex *)(out + 2 * out_stride) = PS_SHUFFLE(four_complex, ab, cd, 2, 3, 6, 7);
    *(four_complex *)(out + 3 * out_stride) = PS_SHUFFLE(four_complex, ba, dc, 2, 3, 6, 7);
}

/* Transposes a matrix of n_rows x n_columns complex numbers; strides are those of rows. */
PS_CLONES
void ps_transpose(const float *source, int64_t n_rows, int64_t n_columns, int64_t source_stride,
                  int64_t target_stride, float *target)
{
    const one_complex *in = (const one_complex *)source;
    one_complex *out = (one_complex *)target;
    const int64_t rows = n_rows - n_rows % 4, columns = n_columns - n_columns % 4;
    for (int64_t r = 0; r < rows; r += 4)
        for (int64_t c = 0; c < columns; c += 4)
            transpose_four(in + r * source_stride + c, source_stride, out + c * target_stride + r,
                           target_stride);
    for (int64_t r = 0; r < n_rows; r++)
        for (int64_t c = r < rows ? columns : 0; c < n_columns; c++)
            out[c * target_stride + r] = in[r * source_stride + c];
}
