#include <dlfcn.h>

#include "cuda/api.h"
#include "cuda/launch.h"

namespace bert_fast {
namespace {

// Two driver functions, looked up at run time so that the extension loads where there is no driver.
struct Driver {
    int (*get_current)(void**) = nullptr;
    int (*set_current)(void*) = nullptr;

    Driver() {
        if (void* library = dlopen("libcuda.so.1", RTLD_LAZY)) {
            get_current = reinterpret_cast<int (*)(void**)>(dlsym(library, "cuCtxGetCurrent"));
            set_current = reinterpret_cast<int (*)(void*)>(dlsym(library, "cuCtxSetCurrent"));
        }
    }
};

const Driver& driver() {
    static const Driver instance;
    return instance;
}

void* current_context() {
    void* context = nullptr;
    if (driver().get_current == nullptr || driver().get_current(&context) != 0) return nullptr;
    return context;
}

std::string version_text(int version) {
    return "CUDA " + std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// The first driver branch of each CUDA major version; within one, drivers and runtimes mix freely.
std::string needed_driver(int runtime) {
    if (runtime / 1000 == 11) return "450";
    if (runtime / 1000 == 12) return "525";
    return runtime / 1000 == 13 ? "580" : "a newer one";
}

__global__ void probe() {}

}  // namespace

DeviceGuard::DeviceGuard(int device, const char* function) : previous_(current_context()) {
    check(cudaSetDevice(device), function);
}

DeviceGuard::~DeviceGuard() {
    if (previous_ != nullptr && previous_ != current_context()) driver().set_current(previous_);
}

std::string cuda_status(int device) {
    int driver_version = 0, runtime_version = 0, devices = 0;
    if (cudaDriverGetVersion(&driver_version) != cudaSuccess || driver_version == 0) return "no NVIDIA driver is installed";
    if (cudaRuntimeGetVersion(&runtime_version) != cudaSuccess) return "the CUDA runtime does not answer";
    if (driver_version / 1000 < runtime_version / 1000) {
        return "the driver (" + version_text(driver_version) + ") is older than " + version_text(runtime_version) +
               " of this build: it needs driver " + needed_driver(runtime_version);
    }
    const cudaError_t error = cudaGetDeviceCount(&devices);
    if (error != cudaSuccess) return std::string("no usable CUDA device: ") + cudaGetErrorString(error);
    if (devices == 0) return "no CUDA device is visible";
    if (device < 0) return "";
    if (device >= devices) return "there is no CUDA device " + std::to_string(device);
    const DeviceGuard guard(device, "cuda_status");
    cudaFuncAttributes attributes;
    const cudaError_t found = cudaFuncGetAttributes(&attributes, probe);
    if (found == cudaSuccess) return "";
    cudaGetLastError();  // leaves no error behind for the next launch to trip over
    return "this build has no code for device " + std::to_string(device) + ": " + cudaGetErrorString(found);
}

}  // namespace bert_fast
