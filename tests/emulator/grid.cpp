// Runs the threads of a CUDA grid on the host, one after the other; at a barrier they take turns.
#include <cstring>
#include <ucontext.h>
#include <vector>
#ifdef __SSE2__
#include <xmmintrin.h>
#endif

struct Place { unsigned x, y, z; };
Place threadIdx, blockIdx, blockDim, gridDim;

namespace {
constexpr std::size_t STACK = 1 << 16;
std::vector<char> stacks;
std::vector<ucontext_t> contexts;
std::vector<bool> ended;
ucontext_t scheduler;
unsigned current;
bool backwards;
void (*entry)(void**);
void** arguments;

void thread_main() {
    entry(arguments);
    ended[current] = true;
    swapcontext(&contexts[current], &scheduler);
}

// Whether all threads of the block came to the same barriers.
bool run_block(unsigned threads) {
    if (contexts.size() < threads) {
        contexts.resize(threads);
        stacks.resize(threads * STACK);
    }
    ended.assign(threads, false);
    for (unsigned t = 0; t < threads; ++t) {
        getcontext(&contexts[t]);
        contexts[t].uc_stack.ss_sp = &stacks[t * STACK];
        contexts[t].uc_stack.ss_size = STACK;
        contexts[t].uc_link = nullptr;
        makecontext(&contexts[t], thread_main, 0);
    }
    for (unsigned left = threads; left;) {
        unsigned waiting = 0;
        for (unsigned k = 0; k < threads; ++k) {
            const unsigned t = backwards ? threads - 1 - k : k;
            if (ended[t]) continue;
            threadIdx.x = current = t;
            swapcontext(&scheduler, &contexts[t]);
            waiting += !ended[t];
        }
        if (waiting && waiting != left) return false;
        left = waiting;
    }
    return true;
}

// Threads and blocks take their turns from the first to the last, and in the next launch the other way round.
int run_blocks(void (*kernel)(void**), void** values, unsigned grid, unsigned block, int barriers) {
    entry = kernel;
    arguments = values;
    gridDim = {grid, 1, 1};
    blockDim = {block, 1, 1};
    threadIdx = {0, 0, 0};
    backwards = !backwards;
    for (unsigned k = 0; k < grid; ++k) {
        blockIdx = {backwards ? grid - 1 - k : k, 0, 0};
        if (barriers) {
            if (!run_block(block)) return 1;
        } else {
            for (unsigned t = 0; t < block; ++t) {
                threadIdx.x = backwards ? block - 1 - t : t;
                kernel(values);
            }
        }
    }
    return 0;
}
}  // namespace

extern "C" void barrier() { swapcontext(&contexts[current], &scheduler); }

// 0, or 1 if some threads of a block ended while others waited at a barrier.
extern "C" int run_grid(void (*kernel)(void**), void** values, unsigned grid, unsigned block, int barriers, int flush) {
#ifdef __SSE2__
    const unsigned mode = _mm_getcsr();
    if (flush) _mm_setcsr(mode | 0x8040);  // what is subnormal is 0, read and computed
#endif
    const int status = run_blocks(kernel, values, grid, block, barriers);
#ifdef __SSE2__
    _mm_setcsr(mode);
#endif
    return status;
}
