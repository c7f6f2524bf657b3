// NVRTC: compiles the sources that the program gives it by the C++ compiler of this machine.
//
// The text is taken as it is, but for the definitions that only a compiler for GPUs knows. `kernels=loops` replaces the
// words for threads and barriers (INDEX, BLOCK_INDEX, FOR_THREADS, BARRIER, SHARED) by loops; `fibres` leaves them and
// runs each thread of a block that uses barriers as a fibre.
#include "device.h"
#include <dlfcn.h>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <sys/stat.h>
#include <ucontext.h>
#include <unistd.h>

namespace emu {

static const char *PRELUDE = R"(
#include <math.h>
#include <string.h>
#define __global__ EMULATED_KERNEL
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __syncthreads() emulated_barrier()
struct emulated_index { unsigned x; };
static emulated_index blockIdx, threadIdx;
extern "C" {
void (*emulated_at_barrier)();
void emulated_set(unsigned block, unsigned thread) { blockIdx.x = block; threadIdx.x = thread; }
}
static inline void emulated_barrier() { emulated_at_barrier(); }
static inline float __uint_as_float(unsigned bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline unsigned __float_as_uint(float x) { unsigned bits; memcpy(&bits, &x, 4); return bits; }
static inline float emulated_from_f16(unsigned short x) { _Float16 y; memcpy(&y, &x, 2); return (float)y; }
static inline unsigned short emulated_to_f16(float x) { _Float16 y = (_Float16)x; unsigned short z; memcpy(&z, &y, 2); return z; }
static inline unsigned short emulated_to_bf16(float x) {
  unsigned b = __float_as_uint(x);
  return (b & 0x7fffffffu) > 0x7f800000u ? (b >> 16) | 0x40u : (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
}
)";

struct Program { std::string source, log, path; int arch = 0; bool cubin = false; };

static bool fibres() { return options().kernels != Kernels::Loops; }

// Replaces one text by another. A source in which it does not occur is not of the form that is emulated.
static bool replace(std::string &text, const std::string &from, const std::string &to, std::string &log) {
  size_t at = text.find(from);
  if (at == std::string::npos) { log = "the emulated NVRTC expects in the source: " + from; return false; }
  text.replace(at, from.size(), to);
  return true;
}

static bool translate(std::string &text, std::string &log) {
  const std::pair<const char *, const char *> always[] = {
    {"asm(\"cvt.f32.f16 %0, %1;\" : \"=f\"(y) : \"h\"(x));", "y = emulated_from_f16(x);"},
    {"asm(\"cvt.rn.f16.f32 %0, %1;\" : \"=h\"(y) : \"f\"(x));", "y = emulated_to_f16(x);"},
    {"asm(\"cvt.rn.bf16.f32 %0, %1;\" : \"=h\"(y) : \"f\"(x));", "y = emulated_to_bf16(x);"},
  };
  const std::pair<const char *, const char *> loops[] = {
    {"#define INDEX ((int)(blockIdx.x * BLOCK + threadIdx.x))", "#define INDEX ((int)threadIdx.x)"},
    {"#define FOR_THREADS(t) for (int t = threadIdx.x, once = 1; once; once = 0)", "#define FOR_THREADS(t) for (int t = 0; t < BLOCK; t++)"},
    {"#define BARRIER __syncthreads()", "#define BARRIER"},
  };
  for (auto &[from, to] : always) if (!replace(text, from, to, log)) return false;
  if (!fibres()) for (auto &[from, to] : loops) if (!replace(text, from, to, log)) return false;
  return true;
}

static std::string folder() {
  Dl_info info;
  dladdr((void *)&folder, &info);
  std::string path = info.dli_fname;
  return path.substr(0, path.rfind('/') + 1) + "kernels";
}

static int shell(const std::string &command) { return system(command.c_str()); }

static std::string read_file(const std::string &path) { std::ifstream in(path); std::stringstream all; all << in.rdbuf(); return all.str(); }

// Appends to the preprocessed source, for each kernel `k`, `run_k(parameters, from, to)`, and `emulated_table` with a line
// `name by_block parameter…` each: p for an address, 4 or 8 for the bytes of a number.
static std::string with_entries(const std::string &text) {
  std::string out, entries, table;
  size_t position = 0;
  const std::string word = "EMULATED_KERNEL void";
  while (true) {
    size_t at = text.find(word, position);
    if (at == std::string::npos) { out += text.substr(position); break; }
    size_t open = text.find('(', at), close = text.find(')', open), next = text.find(word, close);
    std::string name = text.substr(at + word.size(), open - at - word.size());
    name.erase(0, name.find_first_not_of(" \n"));
    name.erase(name.find_last_not_of(" \n") + 1);
    std::string body = text.substr(close, (next == std::string::npos ? text.size() : next) - close);
    bool by_block = fibres() ? body.find("emulated_barrier") != std::string::npos : body.find("blockIdx") != std::string::npos;
    std::string arguments, line = name + (by_block ? " 1" : " 0");
    std::stringstream list(text.substr(open + 1, close - open - 1));
    int i = 0;
    for (std::string one; std::getline(list, one, ','); i++) {
      one.erase(0, one.find_first_not_of(" \n"));
      bool pointer = one.find('*') != std::string::npos;
      std::string type = pointer ? one.substr(0, one.rfind('*') + 1) : one.substr(0, one.rfind(' '));
      bool wide = type.find("long") != std::string::npos || type.find("double") != std::string::npos || type.find("size_t") != std::string::npos;
      line += pointer ? " p" : wide ? " 8" : " 4";
      arguments += (i ? ", *(" : "*(") + type + " *)p[" + std::to_string(i) + "]";
    }
    table += line + "\\n";
    std::string set = fibres() ? "" : by_block ? "blockIdx.x = i; " : "threadIdx.x = i; ";
    entries += "extern \"C\" void run_" + name + "(void **p, unsigned from, unsigned to) { for (unsigned i = from; i < to; i++) { " + set + name + "(" + arguments + "); } }\n";
    out += text.substr(position, at - position) + "void";
    position = at + word.size();
  }
  return out + "\n" + entries + "extern \"C\" { extern const char emulated_table[] = \"" + table + "\"; }\n";
}

// Compiles once for each source and setting; the libraries stay beside this one.
static bool compile(Program &program) {
  const char *flags = getenv("EMULATED_GPU_CFLAGS");
  std::string text = program.source;
  if (!translate(text, program.log)) return false;
  text = PRELUDE + text;
  const std::string with = std::string(" -O2 -w -ffp-contract=off -fno-strict-aliasing -fvisibility=default -shared -fPIC ") + (flags ? flags : "");
  std::string dir = folder(), base = dir + "/" + std::to_string(std::hash<std::string>()(text + with));
  program.path = base + ".so";
  if (access(program.path.c_str(), R_OK) == 0) return true;
  mkdir(dir.c_str(), 0777);
  std::string own = base + "." + std::to_string(getpid());
  std::ofstream(own + ".cpp") << text;
  if (shell("c++ -std=gnu++20 -E -P " + own + ".cpp -o " + own + ".i 2>" + own + ".log")) { program.log = read_file(own + ".log"); return false; }
  std::ofstream(own + ".gen.cpp") << with_entries(read_file(own + ".i"));
  if (shell("c++ -std=gnu++20" + with + " " + own + ".gen.cpp -o " + own + ".so -lm 2>" + own + ".log")) { program.log = read_file(own + ".log"); return false; }
  rename((own + ".so").c_str(), program.path.c_str());
  for (const char *end : {".cpp", ".i", ".gen.cpp", ".log"}) unlink((own + end).c_str());
  return true;
}

// The fibres of a block. A fibre runs until it reaches a barrier or its end.
static const int MOST_THREADS = 1024;
static const size_t STACK = 64 << 10;
static ucontext_t scheduler, fibre[MOST_THREADS];
static bool ended[MOST_THREADS];
static long barriers[MOST_THREADS];
static unsigned running;
static void (*body)(void **, unsigned, unsigned);
static void **body_parameters;

static void at_barrier() { barriers[running]++; swapcontext(&fibre[running], &scheduler); }
static void fibre_main() { body(body_parameters, 0, 1); ended[running] = true; swapcontext(&fibre[running], &scheduler); }

static void run_block(const std::string &name, unsigned block, unsigned threads, void (*set)(unsigned, unsigned)) {
  static auto &stacks = *new std::vector<char>(MOST_THREADS * STACK);
  for (unsigned t = 0; t < threads; t++) {
    getcontext(&fibre[t]);
    fibre[t].uc_stack.ss_sp = &stacks[t * STACK];
    fibre[t].uc_stack.ss_size = STACK;
    fibre[t].uc_link = nullptr;
    makecontext(&fibre[t], fibre_main, 0);
    ended[t] = false;
    barriers[t] = 0;
  }
  for (bool any = true; any;) {
    any = false;
    for (unsigned k = 0; k < threads; k++) {
      unsigned t = options().kernels == Kernels::Reversed ? threads - 1 - k : k;
      if (ended[t]) continue;
      any = true;
      running = t;
      set(block, t);
      swapcontext(&scheduler, &fibre[t]);
    }
    for (unsigned t = 1; t < threads; t++) {
      if (barriers[t] != barriers[0] || ended[t] != ended[0]) { problem("kernel %s: threads of a block reach different barriers", name.c_str()); return; }
    }
  }
}

bool load_compiled(const std::string &path, std::map<std::string, Function *> &functions) {
  void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) { fprintf(stderr, "emulated GPU: %s\n", dlerror()); return false; }
  auto set = (void (*)(unsigned, unsigned))dlsym(library, "emulated_set");
  auto barrier = (void (**)())dlsym(library, "emulated_at_barrier");
  std::stringstream table((const char *)dlsym(library, "emulated_table"));
  for (std::string line; std::getline(table, line);) {
    std::stringstream words(line);
    auto *function = new Function;
    bool by_block;
    words >> function->name >> by_block;
    for (std::string word; words >> word;) {
      function->sizes.push_back(word == "4" ? 4 : 8);
      function->pointers.push_back(word == "p");
    }
    auto run = (void (*)(void **, unsigned, unsigned))dlsym(library, ("run_" + function->name).c_str());
    std::string name = function->name;
    function->run = [=](void **parameters, unsigned blocks, unsigned threads) {
      if (!fibres()) return run(parameters, 0, by_block ? blocks : blocks * threads);
      *barrier = at_barrier;
      body = run;
      body_parameters = parameters;
      for (unsigned block = 0; block < blocks; block++) {
        if (by_block) { run_block(name, block, threads, set); continue; }
        bool reversed = options().kernels == Kernels::Reversed;
        for (unsigned k = 0; k < threads; k++) { set(block, reversed ? threads - 1 - k : k); run(parameters, 0, 1); }
      }
    };
    functions[function->name] = function;
  }
  return true;
}

}  // namespace emu
using namespace emu;

// Results of NVRTC: 0 done, 5 invalid option, 6 compilation failed.
// The minor version tells images of the ways to run kernels apart, because programs keep images under it.
API int nvrtcVersion(int *major, int *minor) { *major = options().nvrtc; *minor = int(options().kernels); return 0; }
API int nvrtcCreateProgram(void **program, const char *source, const char *, int, const char *const *, const char *const *) { LOCK; *program = new Program{source, "", "", 0, false}; return 0; }
API int nvrtcDestroyProgram(void **program) { LOCK; delete (Program *)*program; *program = nullptr; return 0; }
API int nvrtcCompileProgram(void *handle, int n, const char *const *flags) {
  LOCK;
  auto &program = *(Program *)handle;
  for (int i = 0; i < n; i++) {
    std::smatch match;
    std::string flag = flags[i];
    if (std::regex_match(flag, match, std::regex("(?:--gpu-architecture|-arch)=(compute|sm)_(\\d+)a?"))) {
      program.cubin = match[1] == "sm";
      program.arch = stoi(match[2]);
    }
  }
  if (!program.arch) { program.log = "the emulated NVRTC wants --gpu-architecture"; return 5; }
  if (program.arch > (options().nvrtc >= 13 ? 121 : 90)) { program.log = "invalid value for --gpu-architecture"; return 5; }
  return compile(program) ? 0 : 6;
}
static std::string image(Program &program, const char *kind) { return std::string("EMULATED ") + kind + " " + std::to_string(program.arch) + " " + program.path; }
API int nvrtcGetPTXSize(void *p, size_t *n) { LOCK; *n = image(*(Program *)p, "ptx").size() + 1; return 0; }
API int nvrtcGetPTX(void *p, char *out) { LOCK; strcpy(out, image(*(Program *)p, "ptx").c_str()); return 0; }
API int nvrtcGetCUBINSize(void *p, size_t *n) { LOCK; auto &program = *(Program *)p; *n = program.cubin ? image(program, "cubin").size() + 1 : 0; return 0; }
API int nvrtcGetCUBIN(void *p, char *out) { LOCK; auto &program = *(Program *)p; if (program.cubin) strcpy(out, image(program, "cubin").c_str()); return 0; }
API int nvrtcGetProgramLogSize(void *p, size_t *n) { LOCK; *n = ((Program *)p)->log.size() + 1; return 0; }
API int nvrtcGetProgramLog(void *p, char *out) { LOCK; strcpy(out, ((Program *)p)->log.c_str()); return 0; }
