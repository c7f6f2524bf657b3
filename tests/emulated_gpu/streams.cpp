// Streams, events, and capture into graphs.
#include "device.h"
#include <random>
#include <set>

namespace emu {

static std::set<Stream *> &streams() { static auto *s = new std::set<Stream *>; return *s; }
static auto &has_first = *new std::map<int, bool>;

static Stream *new_stream(int device) {
  auto *stream = new Stream(device, !has_first[device]);
  has_first[device] = true;
  streams().insert(stream);
  return stream;
}

Stream *stream_of(void *handle) {
  static auto &defaults = *new std::map<int, Stream *>;
  if (handle) {
    auto *stream = (Stream *)handle;
    if (!streams().count(stream)) { problem("a stream is used that was destroyed"); return stream_of(nullptr); }
    return stream;
  }
  Stream *&stream = defaults[current_device()];
  if (!stream) { stream = new Stream(current_device(), false); streams().insert(stream); }
  return stream;
}

void Stream::step() {
  Operation operation = std::move(waiting.front());
  waiting.pop_front();
  if (operation.awaited) operation.awaited->execute_until(operation.position);
  if (operation.run) operation.run();
  done++;
}

bool Stream::may_step() const {
  if (waiting.empty()) return false;
  const Operation &next = waiting.front();
  return !next.awaited || next.awaited->done >= next.position;
}

void Stream::execute_until(uint64_t position) {
  while (done < position && !waiting.empty()) step();
}

void Stream::push(Operation operation) {
  if (capture) { capture->operations.push_back(std::move(operation)); return; }
  waiting.push_back(std::move(operation));
  given++;
  static std::mt19937_64 draw(options().seed);
  switch (options().schedule) {
    case Schedule::Eager: synchronise(); break;
    case Schedule::Late: break;
    case Schedule::Mirror: if (!first) synchronise(); break;
    case Schedule::Random:
      for (int tries = draw() % 6; tries > 0; tries--) {
        std::vector<Stream *> ready;
        for (Stream *stream : streams()) if (stream->may_step()) ready.push_back(stream);
        if (!ready.empty()) ready[draw() % ready.size()]->step();
      }
  }
}

void synchronise_all() { for (Stream *stream : streams()) stream->synchronise(); }

bool refuse_in_capture(const char *function) {
  bool any = false;
  for (Stream *stream : streams()) if (stream->capture) { stream->capture_invalid = true; any = true; }
  if (any) fprintf(stderr, "emulated GPU: %s during a capture\n", function);
  return any;
}

}  // namespace emu
using namespace emu;

#define REFUSE_IN_CAPTURE if (refuse_in_capture(__func__)) return CAPTURE_UNSUPPORTED
#define UNLESS_LOST if (lost()) return lost()

API int cuStreamCreate(void **handle, unsigned) { LOCK; UNLESS_LOST; *handle = new_stream(current_device()); return SUCCESS; }
API int cuStreamDestroy_v2(void *handle) {
  LOCK;
  Stream *stream = stream_of(handle);
  stream->synchronise();
  streams().erase(stream);  // kept, for events of it
  return SUCCESS;
}
API int cuStreamSynchronize(void *handle) { LOCK; UNLESS_LOST; REFUSE_IN_CAPTURE; stream_of(handle)->synchronise(); return lost(); }
API int cuStreamQuery(void *handle) { LOCK; UNLESS_LOST; REFUSE_IN_CAPTURE; return stream_of(handle)->waiting.empty() ? SUCCESS : NOT_READY; }
API int cuCtxSynchronize() { LOCK; UNLESS_LOST; REFUSE_IN_CAPTURE; synchronise_all(); return lost(); }

API int cuEventCreate(void **event, unsigned) { LOCK; *event = new Event; return SUCCESS; }
API int cuEventDestroy_v2(void *event) { LOCK; delete (Event *)event; return SUCCESS; }
API int cuEventRecord(void *handle, void *stream_handle) {
  LOCK; UNLESS_LOST;
  auto *event = (Event *)handle;
  Stream *stream = stream_of(stream_handle);
  event->stream = stream;
  event->captured = stream->capture != nullptr;
  event->position = stream->given;
  return SUCCESS;
}
API int cuStreamWaitEvent(void *stream_handle, void *handle, unsigned) {
  LOCK; UNLESS_LOST;
  auto *event = (Event *)handle;
  Stream *stream = stream_of(stream_handle);
  if (!event->stream) return SUCCESS;  // never recorded: there is nothing to wait for, as in CUDA
  if (stream->capture) {
    // An event from outside of the capture cannot be waited for in it.
    if (!event->captured) { stream->capture_invalid = true; return CAPTURE_ISOLATION; }
    return SUCCESS;  // of the same capture, in whose order it was recorded
  }
  if (event->captured && event->stream->capture) {
    // The stream joins the capture that the event is of.
    stream->capture = event->stream->capture;
    return SUCCESS;
  }
  stream->push(Operation{nullptr, event->stream, event->position});
  return SUCCESS;
}
API int cuEventSynchronize(void *handle) {
  LOCK; UNLESS_LOST; REFUSE_IN_CAPTURE;
  auto *event = (Event *)handle;
  if (event->stream) event->stream->execute_until(event->position);
  else count("cuEventSynchronize of an event that was never recorded");
  return lost();
}
API int cuEventQuery(void *handle) {
  LOCK; UNLESS_LOST;
  auto *event = (Event *)handle;
  return !event->stream || event->stream->done >= event->position ? SUCCESS : NOT_READY;
}
API int cuEventElapsedTime_v2(float *ms, void *, void *) { *ms = 1; return SUCCESS; }

// Capture. The modes of CUDA differ in which other threads are restricted; here all are, as in the mode `global`.
API int cuStreamBeginCapture_v2(void *handle, int) {
  LOCK; UNLESS_LOST;
  Stream *stream = stream_of(handle);
  if (stream->capture) return INVALID_VALUE;
  stream->capture = new Graph;
  stream->capture_invalid = false;
  return SUCCESS;
}
API int cuStreamEndCapture(void *handle, void **graph) {
  LOCK;
  Stream *stream = stream_of(handle);
  if (!stream->capture) return INVALID_VALUE;
  Graph *captured = stream->capture;
  bool invalid = stream->capture_invalid;
  for (Stream *other : streams()) if (other->capture == captured) { invalid |= other->capture_invalid; other->capture = nullptr; }
  *graph = invalid ? nullptr : captured;
  return invalid ? CAPTURE_INVALIDATED : SUCCESS;
}
API int cuStreamIsCapturing(void *handle, int *status) {
  LOCK;
  Stream *stream = stream_of(handle);
  *status = !stream->capture ? 0 : stream->capture_invalid ? 2 : 1;
  return SUCCESS;
}
API int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long) { LOCK; *executable = new Graph(*(Graph *)graph); return SUCCESS; }
API int cuGraphLaunch(void *executable, void *handle) {
  LOCK; UNLESS_LOST;
  Stream *stream = stream_of(handle);
  for (auto &operation : ((Graph *)executable)->operations) stream->push(operation);
  return SUCCESS;
}
API int cuGraphUpload(void *, void *) { LOCK; return SUCCESS; }
API int cuGraphDestroy(void *graph) { LOCK; delete (Graph *)graph; return SUCCESS; }
API int cuGraphExecDestroy(void *executable) { LOCK; synchronise_all(); delete (Graph *)executable; return SUCCESS; }
