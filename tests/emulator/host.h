// What the text of a CUDA kernel needs to be compiled for the host (see emulator/__init__.py). No standard headers, so
// that a kernel compiles in a tenth of a second, and only what kernels may use.
#define __global__
#define __device__ static inline
#define __forceinline__
#define __noinline__
#define __restrict__
#define __shared__ static
#define __launch_bounds__(n)

struct Place { unsigned x, y, z; };
extern Place threadIdx, blockIdx, blockDim, gridDim;
extern "C" void barrier();
static inline void __syncthreads() { barrier(); }

extern "C" {
float expf(float), expm1f(float), logf(float), log1pf(float), sqrtf(float), sinf(float), cosf(float), tanhf(float);
float erff(float), powf(float, float), floorf(float), fabsf(float), fminf(float, float), fmaxf(float, float);
float fmaf(float, float, float), copysignf(float, float), rintf(float), ldexpf(float, int);
double exp(double), expm1(double), log(double), log1p(double), sqrt(double), sin(double), cos(double), tanh(double);
double erf(double), pow(double, double), floor(double), fabs(double), fmin(double, double), fmax(double, double);
double fma(double, double, double), copysign(double, double), rint(double), ldexp(double, int);
}

// Arithmetic that no compiler may contract.
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned long long)a * b >> 32; }
static inline float __uint_as_float(unsigned x) { float y; __builtin_memcpy(&y, &x, 4); return y; }
static inline unsigned __float_as_uint(float x) { unsigned y; __builtin_memcpy(&y, &x, 4); return y; }
static inline double __longlong_as_double(long long x) { double y; __builtin_memcpy(&y, &x, 8); return y; }
static inline long long __double_as_longlong(double x) { long long y; __builtin_memcpy(&y, &x, 8); return y; }

// One thread runs at a time.
template <class T> static inline T atomicAdd(T* at, T x) { T old = *at; *at = old + x; return old; }

template <class T> static inline T argument(void**& values) { return *(T*)*values++; }
template <class... A> struct Called {  // braces evaluate their arguments in order
    Called(void (*kernel)(A...), A... values) { kernel(values...); }
};
template <class... A> static inline void called(void (*kernel)(A...), void** values) {
    Called<A...>{kernel, argument<A>(values)...};
}
