// Steps of several sequences: one launch for all of them, with a parameter struct for each. Which of the grid's numbers is the
// sequence's, its kernel says.
#pragma once

#include <stdint.h>

constexpr uint32_t kSequences = 8;  // SEQUENCES in ../batch.rs

template <class Args>
struct Each {
    Args of[kSequences];
};
