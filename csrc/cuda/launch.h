// The launch rules, in one place: the tensors' device is set and the caller's restored, and every call is checked.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace bert_fast {

inline void check(cudaError_t error, const char* function) {
    if (error == cudaSuccess) return;
    throw std::runtime_error(std::string(function) + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) +
                             ")");
}

// Restores the driver's current context, not this runtime's current device: PyTorch has a runtime of its own beside
// this statically linked one, and the two share the driver's context and nothing else.
class DeviceGuard {
public:
    DeviceGuard(int device, const char* function);
    ~DeviceGuard();
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

private:
    void* previous_ = nullptr;
};

}  // namespace bert_fast
