// The machine's peak, which the benches compare with: nothing but fused multiply-adds.
#pragma once
#include <stdint.h>

#include "levels.h"

// `rounds` rounds of 12 fused multiply-adds of one vector each; gives the FLOPs that this was.
OCTCONV_DECLARE(double multiplyAdds(int64_t rounds))

namespace octconv {

class Crew;

// GFLOP/s of all threads of the crew together, with the instruction set in use: the best of 64 tries of about 1 ms.
double measurePeak(Crew& crew);

}  // namespace octconv
