// The driver: devices, contexts, copies, modules and launches.
#include "device.h"
#include <cstdlib>
#include <memory>

namespace emu {

static thread_local long current = 0;  // contexts are numbered from 1: that of device 0
static bool initialised = false;
static long launches = 0;

int current_device() { return int(current) - 1; }

int lost() { return options().lost_after >= 0 && launches > options().lost_after ? ECC_UNCORRECTABLE : SUCCESS; }

// Page-locked memory, and how many copies that wait in a stream will read or write it.
struct Pinned { size_t bytes; long pending; };
static auto &pinned = *new std::map<Address, Pinned>;

static Pinned *pinned_at(const void *address) {
  auto it = pinned.upper_bound((Address)address);
  if (it == pinned.begin()) return nullptr;
  --it;
  return (Address)address < it->first + it->second.bytes ? &it->second : nullptr;
}

struct Module { std::map<std::string, Function *> functions; bool candle = false; };

}  // namespace emu
using namespace emu;

#define UNLESS_LOST if (lost()) return lost()
#define IN_CONTEXT if (current_device() < 0) { problem("%s without a context", __func__); return INVALID_CONTEXT; }

API int cuInit(unsigned) { LOCK; initialised = options().init == SUCCESS; return options().init; }
API int cuDriverGetVersion(int *version) { LOCK; *version = options().driver; return SUCCESS; }
API int cuDeviceGetCount(int *count) { LOCK; *count = options().devices; return SUCCESS; }
API int cuDeviceGet(int *device, int ordinal) {
  LOCK;
  if (!initialised) problem("cuDeviceGet before cuInit");
  if (ordinal < 0 || ordinal >= options().devices) return INVALID_DEVICE;
  *device = ordinal;
  return SUCCESS;
}
API int cuDeviceGetAttribute(int *value, int attribute, int) {
  LOCK;
  switch (attribute) {
    case 1: *value = 1024; break;                          // threads of a block
    case 16: *value = 132; break;                          // multiprocessors
    case 75: *value = options().capability / 10; break;    // compute capability
    case 76: *value = options().capability % 10; break;
    case 115: *value = 1; break;                           // memory pools
    default: *value = 0;
  }
  return SUCCESS;
}
API int cuDeviceGetName(char *name, int length, int) { LOCK; snprintf(name, length, "emulated GPU"); return SUCCESS; }
API int cuDeviceTotalMem_v2(size_t *bytes, int) { LOCK; *bytes = options().memory; return SUCCESS; }
API int cuDeviceGetUuid_v2(void *uuid, int device) { LOCK; memset(uuid, device + 1, 16); return SUCCESS; }
API int cuDeviceGetDefaultMemPool(void **pool, int) { LOCK; *pool = (void *)8; return SUCCESS; }
API int cuMemPoolSetAttribute(void *, int, void *) { LOCK; return SUCCESS; }
API int cuDevicePrimaryCtxRetain(void **context, int device) { LOCK; *context = (void *)(long)(device + 1); return SUCCESS; }
API int cuDevicePrimaryCtxRelease_v2(int) { LOCK; return SUCCESS; }
API int cuCtxGetCurrent(void **context) { *context = (void *)current; return SUCCESS; }
API int cuCtxSetCurrent(void *context) { current = (long)context; return SUCCESS; }
API int cuCtxDestroy_v2(void *) { LOCK; return SUCCESS; }
API int cuGetErrorName(int, const char **text) { *text = "CUDA_ERROR"; return SUCCESS; }
API int cuGetErrorString(int error, const char **text) {
  switch (error) {
    case INVALID_VALUE: *text = "invalid argument"; break;
    case OUT_OF_MEMORY: *text = "out of memory"; break;
    case NO_DEVICE: *text = "no CUDA-capable device is detected"; break;
    case ECC_UNCORRECTABLE: *text = "uncorrectable ECC error encountered"; break;
    case UNSUPPORTED_PTX_VERSION: *text = "the provided PTX was compiled with an unsupported toolchain."; break;
    case CAPTURE_UNSUPPORTED: *text = "operation not permitted when stream is capturing"; break;
    case CAPTURE_INVALIDATED: *text = "operation failed due to a previous error during capture"; break;
    default: *text = "unknown error";
  }
  return SUCCESS;
}

API int cuMemAllocAsync(Address *address, size_t bytes, void *stream) {
  LOCK; UNLESS_LOST; IN_CONTEXT;
  if (bytes == 0) return INVALID_VALUE;
  *address = allocate(current_device(), bytes, stream_of(stream));
  return *address ? SUCCESS : OUT_OF_MEMORY;
}
API int cuMemAlloc_v2(Address *address, size_t bytes) {
  LOCK; UNLESS_LOST; IN_CONTEXT;
  if (bytes == 0) return INVALID_VALUE;
  if (refuse_in_capture(__func__)) return CAPTURE_UNSUPPORTED;
  *address = allocate(current_device(), bytes, nullptr);
  return *address ? SUCCESS : OUT_OF_MEMORY;
}
API int cuMemFreeAsync(Address address, void *stream) { LOCK; UNLESS_LOST; return release(address, stream_of(stream)); }
API int cuMemFree_v2(Address address) {
  LOCK; UNLESS_LOST;
  if (refuse_in_capture(__func__)) return CAPTURE_UNSUPPORTED;
  synchronise_all();
  return release(address, nullptr);
}
API int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
  LOCK; UNLESS_LOST;
  *total = options().memory;
  *free_bytes = options().memory - used_memory(current_device());
  return SUCCESS;
}
API int cuMemHostAlloc(void **memory, size_t bytes, unsigned) {
  LOCK; UNLESS_LOST;
  if (bytes == 0) return INVALID_VALUE;
  *memory = malloc(bytes);
  memset(*memory, 0xff, bytes);
  pinned[(Address)*memory] = Pinned{bytes, 0};
  return SUCCESS;
}
API int cuMemFreeHost(void *memory) {
  LOCK;
  auto it = pinned.find((Address)memory);
  if (it == pinned.end()) { problem("page-locked memory is freed that is not allocated"); return INVALID_VALUE; }
  if (it->second.pending) problem("page-locked memory is freed while %ld copies with it wait", it->second.pending);
  synchronise_all();
  pinned.erase(it);
  free(memory);
  return SUCCESS;
}

// A copy that reads or writes page-locked memory when the stream executes it.
static void push_with(Stream *stream, Pinned *memory, std::function<void()> copy) {
  if (!stream->capture) memory->pending++;
  bool counted = !stream->capture;
  stream->push([memory, copy, counted] { copy(); if (counted) memory->pending--; });
}
API int cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, void *handle) {
  LOCK; UNLESS_LOST;
  Stream *stream = stream_of(handle);
  if (Pinned *memory = pinned_at(from)) {
    push_with(stream, memory, [=] { if (check_range(to, bytes, "copy to the device")) memcpy((void *)to, from, bytes); });
    return SUCCESS;
  }
  // From pageable memory: the driver has copied it when the call returns.
  auto held = std::make_shared<std::vector<char>>((const char *)from, (const char *)from + bytes);
  if (stream->capture) fprintf(stderr, "emulated GPU: a copy from pageable memory is captured\n"), stream->capture_invalid = true;
  stream->push([=] { if (check_range(to, bytes, "copy to the device")) memcpy((void *)to, held->data(), bytes); });
  return SUCCESS;
}
API int cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, void *handle) {
  LOCK; UNLESS_LOST;
  Stream *stream = stream_of(handle);
  auto copy = [=] { if (check_range(from, bytes, "copy from the device")) memcpy(to, (void *)from, bytes); };
  if (Pinned *memory = pinned_at(to)) { push_with(stream, memory, copy); return SUCCESS; }
  if (refuse_in_capture(__func__)) return CAPTURE_UNSUPPORTED;
  stream->push(copy);
  stream->synchronise();
  return lost();
}
API int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void *stream) {
  LOCK; UNLESS_LOST;
  stream_of(stream)->push([=] {
    if (check_range(to, bytes, "copy on the device, to") && check_range(from, bytes, "copy on the device, from")) memmove((void *)to, (void *)from, bytes);
  });
  return SUCCESS;
}
API int cuMemcpyPeerAsync(Address, void *, Address, void *, size_t, void *) { LOCK; problem("a copy between devices"); return INVALID_VALUE; }
API int cuMemsetD8Async(Address to, unsigned char value, size_t bytes, void *stream) {
  LOCK; UNLESS_LOST;
  stream_of(stream)->push([=] { if (check_range(to, bytes, "fill")) memset((void *)to, value, bytes); });
  return SUCCESS;
}

API int cuModuleLoad(void **, const char *) { LOCK; return NOT_FOUND; }
// What nvrtc.cpp makes, `EMULATED <kind> <arch> <path>`, or candle's PTX, which a build for the emulated device has empty.
API int cuModuleLoadData(void **handle, const void *data) {
  LOCK; UNLESS_LOST;
  if (refuse_in_capture(__func__)) return CAPTURE_UNSUPPORTED;
  auto *module = new Module;
  *handle = module;
  std::string text((const char *)data);
  char kind[16], path[1024];
  int arch = 0;
  if (text.empty()) { module->candle = true; return SUCCESS; }
  if (sscanf(text.c_str(), "EMULATED %15s %d %1023s", kind, &arch, path) != 3) return INVALID_IMAGE;
  bool cubin = !strcmp(kind, "cubin");
  // A cubin runs on devices of its major capability and at least its minor one; PTX on all that are as new.
  if (cubin ? arch / 10 != options().capability / 10 || arch > options().capability : arch > options().capability) return INVALID_IMAGE;
  if (!cubin && options().nvrtc * 1000 > options().driver) return UNSUPPORTED_PTX_VERSION;
  count(std::string("module of kernels as ") + kind);
  return load_compiled(path, module->functions) ? SUCCESS : INVALID_IMAGE;
}
API int cuModuleUnload(void *) { LOCK; return SUCCESS; }
API int cuModuleGetFunction(void **function, void *module_handle, const char *name) {
  LOCK; UNLESS_LOST;
  auto *module = (Module *)module_handle;
  auto it = module->functions.find(name);
  *function = it != module->functions.end() ? it->second : module->candle ? candle_kernel(name) : nullptr;
  if (!*function) problem("there is no kernel %s; candle's are written in candle.cpp", name);
  return *function ? SUCCESS : NOT_FOUND;
}
API int cuFuncGetAttribute(int *value, int, void *) { LOCK; *value = 0; return SUCCESS; }

API int cuLaunchKernel(void *handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                       unsigned shared, void *stream_handle, void **parameters, void **) {
  LOCK; UNLESS_LOST; IN_CONTEXT;
  launches++;
  auto *function = (Function *)handle;
  Stream *stream = stream_of(stream_handle);
  count("kernel " + function->name);
  if (!gx || !gy || !gz || gx > 0x7fffffffu || gy > 65535 || gz > 65535 || !bx || !by || !bz || bx * by * bz > 1024 || shared > 48 * 1024) {
    // As CUDA: refused, and no fault unless the program goes on.
    fprintf(stderr, "emulated GPU: kernel %s on a grid of %u x %u x %u blocks of %u threads\n", function->name.c_str(), gx, gy, gz, bx * by * bz);
    return INVALID_VALUE;
  }
  if (stream->device != current_device()) problem("kernel %s on a stream of another device", function->name.c_str());
  // The parameters are read at the call.
  auto values = std::make_shared<std::vector<uint64_t>>(function->sizes.size());
  for (size_t i = 0; i < function->sizes.size(); i++) {
    memcpy(&(*values)[i], parameters[i], function->sizes[i]);
    if (function->pointers[i]) check_pointer((*values)[i], current_device(), function->name.c_str(), i);
  }
  stream->push([=] {
    std::vector<void *> addresses;
    for (auto &value : *values) addresses.push_back(&value);
    function->run(addresses.data(), gx * gy * gz, bx * by * bz);
  });
  return SUCCESS;
}
