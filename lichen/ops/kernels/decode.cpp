// What one decoding step computes, for a few tokens at a time.
#include "simd.h"

extern "C" void rms_norm(const Argument* a);
