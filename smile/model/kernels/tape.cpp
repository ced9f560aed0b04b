// Kernels one after another in one call: whoever calls gives up the interpreter's lock once for all.
#include <new>

#include "common.h"

// `tape` holds calls: a function's address, the number of its arguments, the arguments. Returns 0;
// 1 if there was no memory, and then what was to be written holds anything.
extern "C" int smile_run(const smile::Word* tape, int64_t words) {
    using Function = void (*)(const smile::Word*);
    const smile::Word* const end = tape + words;
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
