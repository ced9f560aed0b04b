// Attention, layer norm, activations, embedding and pooling over packed tokens.
#include "common.h"
