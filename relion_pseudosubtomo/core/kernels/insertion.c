#include "instruction_sets.h"
#include "kernels.h"

#include <math.h>
#include <string.h>

#define PS_STRIDE 16        /* samples whose coordinates are steps from one exact place */
#define PS_SAMPLES_AHEAD 16 /* voxels asked for before they are needed */

/* Four floats of a packed voxel (re, im, weight, multiplicity), and the voxels at x and x + 1. */
typedef float packed_voxels __attribute__((vector_size(32), aligned(4)));

/* Samples of one half of a slice's column, ready to be added to the volume. The odd length keeps the
 * arrays out of each other's cache sets. */
#define PS_SAMPLES (PS_MAX_LINE / 2 + 16)
typedef struct {
    int32_t offset[PS_SAMPLES];               /* of the first voxel; -1: out of reach */
    float value[PS_SAMPLES][4];
    float near[PS_SAMPLES], far[PS_SAMPLES];  /* shares of x and x + 1 */
    float corner[4][PS_SAMPLES];              /* shares of (z, y), (z, y + 1), (z + 1, y), ... */
} sample_line;

/* Volume coordinates as whole numbers of 2^-bits voxels: floor is a shift, and a vector holds twice as
 * many as in float64. They are computed in float64 for every sixteenth sample; the steps from there are
 * rounded, once each, so no coordinate is further off than 2^-bits. */
typedef struct {
    int bits;
    int32_t step[3][PS_STRIDE];
    double u[3], v[3];
} fixed_axes;

/* Returns 0 where the axes are too long, or no numbers: nothing of such a slice lies in a volume. */
static int make_fixed_axes(const double *u, const double *v, int64_t s, fixed_axes *result)
{
    fixed_axes axes;
    double reach = 2.0;
    for (int i = 0; i < 3; i++) {
        double side = 2.0 + 0.5 * (double)s * (fabs(u[i]) + fabs(v[i]));
        if (!(side < 1e6)) return 0;
        if (side > reach) reach = side;
    }
    axes.bits = 28;
    while (reach * (double)(1 << axes.bits) > (double)INT32_MAX) axes.bits--;
    for (int i = 0; i < 3; i++) {
        axes.u[i] = u[i] * (double)(1 << axes.bits);
        axes.v[i] = v[i] * (double)(1 << axes.bits);
        for (int j = 0; j < PS_STRIDE; j++) axes.step[i][j] = (int32_t)lrint(j * axes.v[i]);
    }
    *result = axes;
    return 1;
}

/* Computes the samples (x, y0) to (x, y0 + count - 1) of a slice, at most PS_STRIDE. */
PS_INLINE void make_few_samples(sample_line *line, int64_t first, int64_t count,
                                const float *restrict slice, const float *restrict weight,
                                const int32_t *restrict last_x, int64_t x, int64_t y0,
                                const fixed_axes *axes, float scale, int64_t n)
{
    const int32_t border = (int32_t)(n / 2 + 1), bits = axes->bits, mask = (1 << bits) - 1;
    const int32_t row = (int32_t)(n / 2 + 2), plane = (int32_t)(n + 3) * row;
    const float unit = 1.0f / (float)(1 << bits), even = (x + y0) & 1 ? -1.0f : 1.0f;
    const double dx = (double)x, dy = (double)y0;
    const int32_t x_start = (int32_t)lrint(dx * axes->u[0] + dy * axes->v[0]);
    const int32_t y_start = (int32_t)lrint(dx * axes->u[1] + dy * axes->v[1]);
    const int32_t z_start = (int32_t)lrint(dx * axes->u[2] + dy * axes->v[2]);
    int32_t *restrict offset = line->offset + first;
    float *restrict near = line->near + first, *restrict far = line->far + first;
    float *restrict c0 = line->corner[0] + first, *restrict c1 = line->corner[1] + first;
    float *restrict c2 = line->corner[2] + first, *restrict c3 = line->corner[3] + first;
    float(*restrict value)[4] = line->value + first;
    for (int64_t i = 0; i < count; i++) {
        int32_t gx = x_start + axes->step[0][i], gy = y_start + axes->step[1][i],
                gz = z_start + axes->step[2][i];
        int32_t side = gx >> 31; /* -1 where the point has to be mirrored */
        gx = (gx ^ side) - side;
        gy = (gy ^ side) - side;
        gz = (gz ^ side) - side;
        int32_t ix = gx >> bits, iy = (gy >> bits) + border, iz = (gz >> bits) + border;
        float fx = (float)(gx & mask) * unit, fy = (float)(gy & mask) * unit,
              fz = (float)(gz & mask) * unit;
        int reached = (ix < border) & (iy >= 0) & (iy < 2 * border) & (iz >= 0) & (iz < 2 * border)
                      & ((int32_t)x <= last_x[i]);
        offset[i] = reached ? iz * plane + iy * row + ix : -1;
        far[i] = fx * scale;
        near[i] = scale - fx * scale;
        c0[i] = (1.0f - fz) * (1.0f - fy);
        c1[i] = (1.0f - fz) * fy;
        c2[i] = fz * (1.0f - fy);
        c3[i] = fz * fy;
    }
    for (int64_t i = 0; i < count; i++) {
        float sign = i & 1 ? -even : even;
        value[i][0] = slice[2 * i] * sign;
        value[i][1] = slice[2 * i + 1] * (x_start + axes->step[0][i] < 0 ? -sign : sign);
        value[i][2] = weight[i];
        value[i][3] = 1.0f;
    }
}

PS_INLINE void make_samples(sample_line *line, const float *slice, const float *weight,
                            const int32_t *last_x, int64_t x, int64_t y0, int64_t count,
                            const fixed_axes *axes, float scale, int64_t n)
{
    int64_t i = 0;
    for (; i + PS_STRIDE <= count; i += PS_STRIDE)
        make_few_samples(line, i, PS_STRIDE, slice + 2 * i, weight + i, last_x + i, x, y0 + i, axes,
                         scale, n);
    make_few_samples(line, i, count - i, slice + 2 * i, weight + i, last_x + i, x, y0 + i, axes,
                     scale, n);
    for (i = count; i < count + PS_SAMPLES_AHEAD; i++) line->offset[i] = 0;
}

PS_INLINE void add_sample(const sample_line *line, int64_t i, int64_t row, int64_t plane,
                          float *volume)
{
    if (line->offset[i] < 0) return;
    const float *ahead = volume + 4 * (int64_t)line->offset[i + PS_SAMPLES_AHEAD];
    __builtin_prefetch(ahead, 1);
    __builtin_prefetch(ahead + plane, 1);
    const float *v = line->value[i], near = line->near[i], far = line->far[i];
    packed_voxels pair = {v[0], v[1], v[2], v[3], v[0], v[1], v[2], v[3]};
    packed_voxels share = {near, near, near, near, far, far, far, far};
    pair *= share;
    float *voxel = volume + 4 * (int64_t)line->offset[i];
    *(packed_voxels *)voxel += pair * line->corner[0][i];
    *(packed_voxels *)(voxel + row) += pair * line->corner[1][i];
    *(packed_voxels *)(voxel + plane) += pair * line->corner[2][i];
    *(packed_voxels *)(voxel + plane + row) += pair * line->corner[3][i];
}

/* Adds one slice to the packed volume (spec 2.8). The volume has n + 3 planes of n + 3 rows of
 * n/2 + 2 voxels, index (n/2 + 1 + j_z, n/2 + 1 + j_y, j_x): one voxel more on each side than are
 * kept, so the eight neighbours of every point in reach need no test. Neighbouring samples often add
 * to one voxel, and each such addition waits for the last; the two halves of a column, which lie far
 * apart, take turns. */
PS_CLONES
void ps_insert_slice(const float *slice, const float *weight, int64_t s, const int32_t *last_x,
                     const double *u, const double *v, double scale, int64_t n, float *volume)
{
    sample_line up, down;
    fixed_axes axes;
    if (!make_fixed_axes(u, v, s, &axes)) return;
    const int64_t row = (n / 2 + 2) * 4, plane = (n + 3) * row;
    for (int64_t x = 0; x <= s / 2; x++) {
        int64_t reach = (int64_t)floor(sqrt((double)(s * s / 4 - x * x)));
        int64_t n_up = reach < s / 2 - 1 ? reach + 1 : s / 2, n_down = x == 0 ? 0 : reach, k = x * s;
        make_samples(&up, slice + 2 * k, weight + k, last_x, x, 0, n_up, &axes, (float)scale, n);
        k += s - n_down;
        make_samples(&down, slice + 2 * k, weight + k, last_x + s - n_down, x, -n_down, n_down, &axes,
                     (float)scale, n);
        int64_t both = n_up < n_down ? n_up : n_down;
        for (int64_t i = 0; i < both; i++) {
            add_sample(&up, i, row, plane, volume);
            add_sample(&down, i, row, plane, volume);
        }
        for (int64_t i = both; i < n_up; i++) add_sample(&up, i, row, plane, volume);
        for (int64_t i = both; i < n_down; i++) add_sample(&down, i, row, plane, volume);
    }
}

PS_INLINE float *packed_voxel(float *volume, int64_t n, int64_t z, int64_t y)
{
    int64_t jz = z < n / 2 ? z : z - n, jy = y < n / 2 ? y : y - n;
    return volume + ((jz + n / 2 + 1) * (n + 3) + (jy + n / 2 + 1)) * (n / 2 + 2) * 4;
}

/* Every addition to the plane x = 0 counts at the mirrored voxel too, conjugated; insertion is linear,
 * so that is done once, at the end. */
static void mirror_first_plane(float *volume, int64_t n)
{
    for (int64_t z = 0; z <= n / 2; z++) {
        for (int64_t y = 0; y < n; y++) {
            int64_t mz = (n - z) % n, my = (n - y) % n;
            if (mz < z || (mz == z && my < y)) continue;
            float *a = packed_voxel(volume, n, z, y), *b = packed_voxel(volume, n, mz, my);
            float re = a[0] + b[0], im = a[1] - b[1], w = a[2] + b[2], m = a[3] + b[3];
            a[0] = b[0] = re;
            a[1] = im;
            b[1] = -im;
            a[2] = b[2] = w;
            a[3] = b[3] = m;
        }
    }
}

/* Splits the packed volume into half-complex data (times scale and the sign that puts the origin at the
 * centre), weight and multiplicity in FFTW order, and clears it for the next particle, row by row. */
PS_CLONES
void ps_unpack_volume(float *volume, int64_t n, float scale, int64_t plane, float *data,
                      float *weight, float *multiplicity)
{
    const int64_t half = n / 2 + 1, border = half;
    mirror_first_plane(volume, n);
    for (int64_t iz = 0; iz < n + 3; iz++) {
        for (int64_t iy = 0; iy < n + 3; iy++) {
            float *restrict in = volume + (iz * (n + 3) + iy) * (half + 1) * 4;
            int64_t jz = iz - border, jy = iy - border;
            if (jz >= -n / 2 && jz < n / 2 && jy >= -n / 2 && jy < n / 2) {
                int64_t z = jz < 0 ? jz + n : jz, y = jy < 0 ? jy + n : jy;
                float *restrict d = data + 2 * (z * plane + y * half);
                float *restrict w = weight + (z * n + y) * half;
                float *restrict m = multiplicity + (z * n + y) * half;
                float sign = (z + y) & 1 ? -scale : scale;
                for (int64_t x = 0; x < half; x++) {
                    float signed_scale = x & 1 ? -sign : sign;
                    d[2 * x] = in[4 * x] * signed_scale;
                    d[2 * x + 1] = in[4 * x + 1] * signed_scale;
                    w[x] = in[4 * x + 2];
                    m[x] = in[4 * x + 3];
                }
            }
            memset(in, 0, (size_t)((half + 1) * 4) * sizeof(float));
        }
    }
}

/* The transform of the finished real volume is Hermitian in its last plane, x = n/2; what was inserted
 * need not be. */
static void make_last_plane_hermitian(float *data, int64_t n, int64_t plane)
{
    int64_t half = n / 2 + 1;
    for (int64_t z = 0; z <= n / 2; z++) {
        for (int64_t y = 0; y < n; y++) {
            int64_t mz = (n - z) % n, my = (n - y) % n;
            float *a = data + 2 * (z * plane + y * half + n / 2);
            float *b = data + 2 * (mz * plane + my * half + n / 2);
            float re = 0.5f * (a[0] + b[0]), im = 0.5f * (a[1] - b[1]);
            a[0] = b[0] = re;
            a[1] = im;
            b[1] = -im;
        }
    }
}

/* Multiplies data, weight and multiplicity by the cone weight (spec 2.9). */
void ps_weight_cone(float *data, float *weight, float *multiplicity, int64_t n, int64_t plane,
                    const double *rotation, double slope, double sig0)
{
    const double *a = rotation;
    make_last_plane_hermitian(data, n, plane);
    for (int64_t z = 0; z < n; z++) {
        double kz = (double)(z < n / 2 ? z : z - n);
        for (int64_t y = 0; y < n; y++) {
            double ky = (double)(y < n / 2 ? y : y - n);
            for (int64_t x = 0; x <= n / 2; x++) {
                double kx = (double)x;
                double rx = a[0] * kx + a[1] * ky + a[2] * kz;
                double ry = a[3] * kx + a[4] * ky + a[5] * kz;
                double rz = a[6] * kx + a[7] * ky + a[8] * kz;
                double t = sqrt(rx * rx + ry * ry) / (fabs(rz) * slope + sig0);
                float m = (float)(1.0 - exp(-0.5 * t * t));
                int64_t i = (z * n + y) * (n / 2 + 1) + x;
                float *d = data + 2 * (z * plane + y * (n / 2 + 1) + x);
                d[0] *= m;
                d[1] *= m;
                weight[i] *= m;
                multiplicity[i] *= m;
            }
        }
    }
}
