// Kernels one after another in one call: whoever calls gives up the interpreter's lock once for all.
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

#include "common.h"

namespace {

using smile::Word;

// 0; 1 if there was no memory.
int run(const Word* tape, int64_t words) {
    using Function = void (*)(const Word*);
    const Word* const end = tape + words;
    try {
        while (tape < end) {
            const auto function = reinterpret_cast<Function>(tape[0].i);
            function(tape + 2);
            tape += 2 + tape[1].i;
        }
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

// A thread that runs tapes for another, which waits, whenever nobody else wants the processor. The
// other keeps its own priority: so it never holds the interpreter's lock while everybody goes first.
class StandIn {
public:
    StandIn() : thread_([this] { work(); }) {}

    ~StandIn() {
        hand_over(nullptr, 0, true);
        thread_.join();
    }

    int run(const Word* tape, int64_t words) {
        hand_over(tape, words, false);
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [this] { return tape_ == nullptr; });
        return result_;
    }

private:
    void hand_over(const Word* tape, int64_t words, bool ending) {
        const std::lock_guard<std::mutex> lock(mutex_);
        tape_ = tape;
        words_ = words;
        ending_ = ending;
        changed_.notify_all();
    }

    void work() {
#if defined(__linux__)
        // Not merely nice: for threads that wake up, a processor that runs nothing else is free.
        const sched_param none{};
        sched_setscheduler(0, SCHED_IDLE, &none);  // 0 is this thread
#endif
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            changed_.wait(lock, [this] { return tape_ != nullptr || ending_; });
            if (ending_) return;
            lock.unlock();
            const int result = ::run(tape_, words_);
            lock.lock();
            result_ = result;
            tape_ = nullptr;
            changed_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    const Word* tape_ = nullptr;
    int64_t words_ = 0;
    int result_ = 0;
    bool ending_ = false;
    std::thread thread_;  // last: it uses the others
};

thread_local bool gives_way = false;

}  // namespace

// From now on the calling thread's tapes run when nobody else wants the processor.
extern "C" void smile_give_way() { gives_way = true; }

// `tape` holds calls: a function's address, the number of its arguments, the arguments. Returns 0;
// 1 if there was no memory, and then what was to be written holds anything.
extern "C" int smile_run(const smile::Word* tape, int64_t words) {
    if (!gives_way) return run(tape, words);
    thread_local StandIn stand_in;
    return stand_in.run(tape, words);
}
