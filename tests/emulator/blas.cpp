// cuBLAS's functions that minigan calls, which call those of emulator/__init__.py.
typedef int (*SetStream)(void*, void*);
typedef int (*Gemm)(void*, int, int, int, int, int, int, const void*, const void*, int, long long, const void*, int,
                    long long, const void*, void*, int, long long, int);
static SetStream set_stream;
static Gemm gemm;

extern "C" void hook(SetStream its_stream, Gemm its_gemm) {
    set_stream = its_stream;
    gemm = its_gemm;
}
extern "C" int cublasSetStream_v2(void* handle, void* stream) { return set_stream(handle, stream); }

#define PRODUCT(name, wide)                                                                                            \
    extern "C" int name(void* handle, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int lda,  \
                        long long sa, const void* b, int ldb, long long sb, const void* beta, void* c, int ldc,        \
                        long long sc, int batch) {                                                                     \
        return gemm(handle, wide, ta, tb, m, n, k, alpha, a, lda, sa, b, ldb, sb, beta, c, ldc, sc, batch);            \
    }
PRODUCT(cublasSgemmStridedBatched, 0)
PRODUCT(cublasDgemmStridedBatched, 1)
