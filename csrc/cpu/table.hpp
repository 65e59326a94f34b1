// The name of a table of kernels: one for each instruction set that cpu/*.cpp are compiled for.
#pragma once

#define PB_JOIN(a, b) a##b
#define PB_JOIN_EXPANDED(a, b) PB_JOIN(a, b)
#define PB_TABLE(name) PB_JOIN_EXPANDED(name##_, PB_ISA)
