// Runs the threads of a CUDA grid on the host, one after the other; at a barrier they take turns.
#include <cstring>
#include <ucontext.h>
#include <vector>

struct Place { unsigned x, y, z; };
Place threadIdx, blockIdx, blockDim, gridDim;

namespace {
constexpr std::size_t STACK = 1 << 16;
std::vector<char> stacks;
std::vector<ucontext_t> contexts;
std::vector<bool> ended;
ucontext_t scheduler;
unsigned current;
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
        for (unsigned t = 0; t < threads; ++t) {
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
}  // namespace

extern "C" void barrier() { swapcontext(&contexts[current], &scheduler); }

// 0, or 1 if some threads of a block ended while others waited at a barrier.
extern "C" int run_grid(void (*kernel)(void**), void** values, unsigned grid, unsigned block, int barriers) {
    entry = kernel;
    arguments = values;
    gridDim = {grid, 1, 1};
    blockDim = {block, 1, 1};
    threadIdx = {0, 0, 0};
    for (unsigned b = 0; b < grid; ++b) {
        blockIdx = {b, 0, 0};
        if (barriers) {
            if (!run_block(block)) return 1;
        } else {
            for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x) kernel(values);
        }
    }
    return 0;
}
