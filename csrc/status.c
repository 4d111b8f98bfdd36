/* SPDX-License-Identifier: Apache-2.0
 * A message for each status of the core. */
#include "fed.h"

const char *fed_strerror(int status) {
    switch (status) {
    case FED_OK:
        return "no error (FED_OK)";
    case FED_ERR_NO_MEMORY:
        return "out of memory; use fewer threads or a smaller model (FED_ERR_NO_MEMORY)";
    case FED_ERR_ARGUMENT:
        return "a size, kind or option is outside what the core accepts (FED_ERR_ARGUMENT)";
    case FED_ERR_LABEL:
        return "a label is outside the model's classes (FED_ERR_LABEL)";
    case FED_ERR_CANCELLED:
        return "the work was cancelled (FED_ERR_CANCELLED)";
    case FED_ERR_ISA:
        return "this build or this machine lacks the instruction set (FED_ERR_ISA)";
    case FED_ERR_CHANGED:
        return "labels changed while they were read (FED_ERR_CHANGED)";
    case FED_ERR_PAYLOAD:
        return "the bytes are not a payload of this codec (FED_ERR_PAYLOAD)";
    default:
        return "unknown status";
    }
}
