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

// Where a function launches, and under which name it fails.
struct Device {
    int index;
    cudaStream_t stream;
    const char* function;
};

// How many blocks of a kernel run on the whole device at the same time.
template <typename Kernel>
int64_t blocks_at_once(Kernel kernel, int threads, const Device& device) {
    int multiprocessors = 0, resident = 0;
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device.index), device.function);
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, 0), device.function);
    return int64_t{multiprocessors} * (resident > 0 ? resident : 1);
}

}  // namespace bert_fast
