// The emulated GPU: what its files share. See README.md for what it proves.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

namespace emu {

// An address in the memory of a device, which is memory of this process.
using Address = uint64_t;

// Results of the driver's functions (cuda.h's CUresult).
enum : int {
  SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_IMAGE = 200,
  INVALID_CONTEXT = 201, ECC_UNCORRECTABLE = 214, UNSUPPORTED_PTX_VERSION = 222, INVALID_HANDLE = 400, NOT_FOUND = 500,
  NOT_READY = 600, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, CAPTURE_ISOLATION = 905,
};

// The order in which operations of several streams are executed, where the program leaves it open.
enum class Schedule {
  Eager,   // at the call
  Late,    // when an event, a synchronisation or a read demands them
  Mirror,  // those of the first stream of a device late, those of all others at the call
  Random,  // drawn from a seed
};

// How the kernels that NVRTC compiles are executed.
enum class Kernels {
  Loops,     // threads one after the other; blocks that use barriers as loops over their threads
  Fibres,    // threads of a block as fibres that meet at barriers, in the order of their numbers
  Reversed,  // the same, in the reverse order
};

// What the variable EMULATED_GPU says: `key=value` separated by commas.
struct Options {
  Schedule schedule = Schedule::Eager;
  Kernels kernels = Kernels::Loops;
  uint64_t seed = 0;                 // of the random schedule
  uint64_t memory = 16ull << 30;     // bytes of each device
  int devices = 1;
  int init = SUCCESS;                // what cuInit returns
  int driver = 13000;                // the driver's version of CUDA
  int capability = 90;               // ten times the compute capability
  int nvrtc = 13;                    // the major version of NVRTC; 12 knows no sm_100 and newer
  long lost_after = -1;              // launches after which the device is lost
  bool reuse = true;                 // freed memory is given out again in stream order, as by CUDA's pools
  std::string report;                // a file for the report, one JSON object a process
};
const Options &options();

// The lock that every function of the driver and the libraries takes.
std::recursive_mutex &lock();
#define LOCK std::lock_guard<std::recursive_mutex> guard_(emu::lock()); emu::count(__func__)

// Counts calls, launches and what else the report shows.
void count(const std::string &what);

// Reports a fault of the program. The process then ends with exit code 86, whatever it wanted to end with.
void problem(const char *format, ...) __attribute__((format(printf, 1, 2)));

struct Stream;

// Something that a stream executes in its order.
struct Operation {
  std::function<void()> run;
  Stream *awaited = nullptr;  // the stream that must have executed `position` operations before
  uint64_t position = 0;
};

// A list of operations that were captured instead of executed.
struct Graph { std::vector<Operation> operations; };

struct Stream {
  int device;
  bool first;  // of its device: the one that computes
  std::deque<Operation> waiting;
  uint64_t given = 0, done = 0;
  Graph *capture = nullptr;
  bool capture_invalid = false;

  Stream(int device, bool first) : device(device), first(first) {}
  void push(Operation operation);
  void push(std::function<void()> run) { push(Operation{std::move(run)}); }
  void execute_until(uint64_t position);
  void synchronise() { execute_until(given); }
  bool may_step() const;
  void step();
};

struct Event { Stream *stream = nullptr; uint64_t position = 0; bool captured = false; };

// The stream that a handle means; the default stream of the current device for null.
Stream *stream_of(void *handle);
void synchronise_all();
// Whether any stream captures: what would synchronise is then refused, and ends the capture.
bool refuse_in_capture(const char *function);

// The device of the calling thread's context, or -1.
int current_device();
// The error that every call returns once a device is lost, else 0.
int lost();

// Device memory.
Address allocate(int device, size_t bytes, Stream *stream);
int release(Address address, Stream *stream);
// Whether [address, address + bytes) lies in one live allocation; reports a problem if not.
bool check_range(Address address, size_t bytes, const char *use);
// Whether a pointer that a kernel was given leads to memory of the device that has not been freed.
void check_pointer(Address address, int device, const char *kernel, size_t argument);
size_t used_memory(int device);
std::string leaks();

// A kernel that can be launched.
struct Function {
  std::string name;
  std::vector<int> sizes;              // bytes of each parameter
  std::vector<bool> pointers;          // which are addresses
  // Executes the grid: its parameters' addresses, blocks, threads of a block.
  std::function<void(void **, unsigned, unsigned)> run;
};
// Candle's kernels by their names, which are written in C++ here; null if there is none.
Function *candle_kernel(const std::string &name);
// The kernels of a library that nvrtc.cpp compiled.
bool load_compiled(const std::string &path, std::map<std::string, Function *> &functions);

// bf16 and f16 as bits, converted as CUDA does: to nearest, ties to even.
struct bf16 {
  uint16_t bits;
  bf16() = default;
  bf16(float x) {
    uint32_t b; memcpy(&b, &x, 4);
    bits = (b & 0x7fffffffu) > 0x7f800000u ? (b >> 16) | 0x40u : (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
  }
  operator float() const { uint32_t b = uint32_t(bits) << 16; float x; memcpy(&x, &b, 4); return x; }
};
struct f16 {
  uint16_t bits;
  f16() = default;
  f16(float x) { _Float16 h = _Float16(x); memcpy(&bits, &h, 2); }
  operator float() const { _Float16 h; memcpy(&h, &bits, 2); return float(h); }
};

}  // namespace emu
