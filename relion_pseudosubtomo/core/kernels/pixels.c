#include "pixels.h"

#include <signal.h>
#include <string.h>

#ifdef PS_HAVE_F16C
#include <immintrin.h>
#endif

static float half_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, magnitude = h & 0x7fffu, bits;
    float value;
    if (magnitude >= 0x7c00u) {                       /* infinite or not a number */
        bits = sign | 0x7f800000u | (magnitude & 0x3ffu) << 13;
    } else if (magnitude >= 0x400u) {                 /* normal: shift and rebias the exponent */
        bits = sign | ((magnitude << 13) + 0x38000000u);
    } else {                                          /* subnormal: an exact multiple of 2^-24 */
        value = (float)magnitude * 0x1p-24f;
        return sign ? -value : value;
    }
    memcpy(&value, &bits, sizeof value);
    return value;
}

#ifdef PS_HAVE_F16C
__attribute__((target("avx,f16c")))
static void convert_half_f16c(const char *source, int64_t n, float *out)
{
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(source + 2 * i))));
    for (; i < n; i++) {
        uint16_t h;
        memcpy(&h, source + 2 * i, 2);
        out[i] = half_to_float(h);
    }
}
#endif

static void convert_half(const char *source, int64_t n, float *out)
{
#ifdef PS_HAVE_F16C
    if (__builtin_cpu_supports("avx2")) { /* which has f16c; older compilers cannot ask for that */
        convert_half_f16c(source, n, out);
        return;
    }
#endif
    for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, source + 2 * i, 2);
        out[i] = half_to_float(h);
    }
}

PS_CLONES
void ps_convert_pixels(const char *source, int mode, int64_t n, float *out)
{
    switch (mode) {
    case PS_FLOAT32:
        memcpy(out, source, (size_t)n * sizeof(float));
        break;
    case PS_FLOAT16:
        convert_half(source, n, out);
        break;
    case PS_INT8:
        for (int64_t i = 0; i < n; i++) out[i] = (float)((const int8_t *)source)[i];
        break;
    case PS_INT16:
        for (int64_t i = 0; i < n; i++) {
            int16_t value;
            memcpy(&value, source + 2 * i, 2);
            out[i] = (float)value;
        }
        break;
    default:
        for (int64_t i = 0; i < n; i++) {
            uint16_t value;
            memcpy(&value, source + 2 * i, 2);
            out[i] = (float)value;
        }
    }
}

__thread sigjmp_buf *volatile ps_bus_target;

static void on_bus_error(int number, siginfo_t *info, void *context)
{
    (void)info;
    (void)context;
    sigjmp_buf *target = ps_bus_target;
    if (target) siglongjmp(*target, 1);
    signal(number, SIG_DFL);
    raise(number);
}

void ps_catch_bus_errors(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, NULL);
}
