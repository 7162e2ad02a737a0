/* A libcuda.so.1 without a GPU, for the real PyCUDA and the real cuda.bindings to call.

   Device memory is host memory. Streams are queues that run when somebody waits for them, and not
   before; so a missing wait shows. What may not be read yet is poisoned. Misuse - no current
   context, an address that is not allocated, memory that is freed while a queue uses it - gives
   the driver's error codes, and a line on stderr that says what was wrong.

   Functions that nothing here calls are not defined: cuGetProcAddress says so, and
   fake_names.h, which the build writes, makes the others that PyCUDA links to fail with
   CUDA_ERROR_NOT_SUPPORTED. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef unsigned long long Address;
enum {
    OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALISED = 3, INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600,
    ILLEGAL_ADDRESS = 700, NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900
};

typedef struct Stream Stream;
typedef struct Event Event;
typedef void (*HostFunction)(void *);
typedef enum { COPY, HOST, MARK, WAIT } Kind;

typedef struct Op {
    Kind kind;
    void *target; const void *source; size_t size; /* COPY */
    HostFunction function; void *data;             /* HOST */
    Event *event; long ticket;                     /* MARK, WAIT */
    struct Op *next;
} Op;
struct Stream { Op *first, *last; int capturing, running; Op *captured, *captured_last; Stream *next; };
struct Event { Stream *stream; long asked, reached; double at_ms; int references; };
typedef struct Graph { Op *first; } Graph;
typedef struct Block { char *start; size_t size; int device; struct Block *next; } Block;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t progress = PTHREAD_COND_INITIALIZER;
static Block *blocks;
static Stream *streams;
static Stream legacy;
static double now_ms;
static int initialised, retained, counts[4]; /* live streams, events, graphs, graph execs */
static size_t used, total = 1ull << 30;
static __thread int depth;
static char primary;

static Result fail(Result code, const char *what) {
    fprintf(stderr, "fake libcuda: %s\n", what);
    return code;
}
#define NEED_CONTEXT(what) do { if (!depth) return fail(INVALID_CONTEXT, what " without a context"); } while (0)
#define LOCKED(expression) do { pthread_mutex_lock(&lock); Result r_ = (expression); pthread_mutex_unlock(&lock); return r_; } while (0)

static Block *block_of(const void *address, size_t size, int device) {
    for (Block *b = blocks; b; b = b->next)
        if (b->device == device && (const char *)address >= b->start &&
            (const char *)address + size <= b->start + b->size) return b;
    return NULL;
}

/* ---------------------------------------------------------------- queues */

static Stream *stream_of(void *handle) {
    if (handle == NULL || handle == (void *)1 || handle == (void *)2) return &legacy;
    for (Stream *s = streams; s; s = s->next) if (s == handle) return s;
    return NULL;
}

static void append(Stream *s, Op *op) {
    op->next = NULL;
    if (s->capturing) {
        if (s->captured_last) s->captured_last->next = op; else s->captured = op;
        s->captured_last = op;
        return;
    }
    if (s->last) s->last->next = op; else s->first = op;
    s->last = op;
}

static void run_to(Event *event, long ticket);

static void step(Stream *s) {
    if (s->running) { /* another thread runs its front */
        pthread_cond_wait(&progress, &lock);
        return;
    }
    Op *op = s->first;
    s->running = 1;
    s->first = op->next;
    if (!s->first) s->last = NULL;
    now_ms += 1.0;
    switch (op->kind) {
    case COPY: memcpy(op->target, op->source, op->size); break;
    case HOST: /* it takes Python's lock, whose holder may wait for ours */
        pthread_mutex_unlock(&lock);
        op->function(op->data);
        pthread_mutex_lock(&lock);
        break;
    case MARK:
        if (op->event->reached < op->ticket) op->event->reached = op->ticket;
        op->event->at_ms = now_ms;
        break;
    case WAIT: run_to(op->event, op->ticket); break;
    }
    if (op->event && --op->event->references == 0) free(op->event);
    free(op);
    s->running = 0;
    pthread_cond_broadcast(&progress);
}

static void run_to(Event *event, long ticket) {
    Stream *s = event->stream;
    while (event->reached < ticket && (s->first || s->running)) step(s);
}

static void run_all(Stream *s) { while (s->first || s->running) step(s); }

static int in_use(const char *start, size_t size) {
    for (Stream *s = streams; s; s = s->next)
        for (Op *op = s->first; op; op = op->next)
            if (op->kind == COPY &&
                (((char *)op->target < start + size && start < (char *)op->target + op->size) ||
                 ((const char *)op->source < start + size && start < (const char *)op->source + op->size)))
                return 1;
    return 0;
}

/* ---------------------------------------------------------------- start, devices, contexts */

Result cuInit(unsigned flags) {
    const char *refusal = getenv("FAKE_CUINIT"); /* the code of an error */
    if (refusal) return atoi(refusal);
    initialised = 1;
    return flags ? INVALID_VALUE : OK;
}
Result cuDriverGetVersion(int *version) { *version = 13000; return OK; }
Result cuDeviceGetCount(int *count) { *count = 1; return initialised ? OK : NOT_INITIALISED; }
Result cuDeviceGet(int *device, int ordinal) { *device = 0; return ordinal == 0 ? OK : INVALID_DEVICE; }
Result cuDeviceGetName(char *name, int size, int device) { (void)device; snprintf(name, size, "Fake GPU"); return OK; }
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == 75 ? 8 : attribute == 76 ? 6 : 1; /* compute capability 8.6 */
    return OK;
}
Result cuDeviceComputeCapability(int *major, int *minor, int device) { (void)device; *major = 8; *minor = 6; return OK; }
Result cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = total; return OK; }
Result cuDevicePrimaryCtxRetain(void **context, int device) { (void)device; retained++; *context = &primary; return OK; }
Result cuDevicePrimaryCtxRelease_v2(int device) {
    (void)device;
    return retained-- > 0 ? OK : fail(INVALID_CONTEXT, "the primary context is released too often");
}
Result cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { (void)device; *flags = 0; *active = retained > 0; return OK; }
Result cuCtxPushCurrent_v2(void *context) {
    if (context != &primary || retained <= 0) return fail(INVALID_CONTEXT, "a context is pushed that is not retained");
    depth++;
    return OK;
}
Result cuCtxPopCurrent_v2(void **context) {
    if (!depth) return fail(INVALID_CONTEXT, "no context to pop");
    depth--;
    if (context) *context = &primary;
    return OK;
}
Result cuCtxGetCurrent(void **context) { *context = depth ? &primary : NULL; return OK; }
Result cuCtxSetCurrent(void *context) { depth = context != NULL; return OK; }
Result cuCtxGetDevice(int *device) { *device = 0; return depth ? OK : INVALID_CONTEXT; }
Result cuCtxGetApiVersion(void *context, unsigned *version) { (void)context; *version = 13000; return OK; }
Result cuCtxSynchronize(void) {
    NEED_CONTEXT("cuCtxSynchronize");
    pthread_mutex_lock(&lock);
    for (Stream *s = streams; s; s = s->next) run_all(s);
    run_all(&legacy);
    pthread_mutex_unlock(&lock);
    return OK;
}

/* ---------------------------------------------------------------- memory */

static Result allocate(void **address, size_t size, int device) {
    if (!size) return fail(INVALID_VALUE, "allocation of no bytes");
    if (size > (device ? total - used : total)) return OUT_OF_MEMORY;
    Block *b = malloc(sizeof *b);
    b->start = aligned_alloc(256, (size + 255) / 256 * 256);
    b->size = size; b->device = device; b->next = blocks;
    memset(b->start, device ? 0xCD : 0xA5, size);
    if (device) used += size;
    blocks = b;
    *address = b->start;
    return OK;
}
static Result release(void *address, int device) {
    for (Block **place = &blocks; *place; place = &(*place)->next) {
        Block *b = *place;
        if (b->start != address || b->device != device) continue;
        if (in_use(b->start, b->size)) return fail(ILLEGAL_ADDRESS, "memory is freed while a stream uses it");
        *place = b->next;
        if (device) used -= b->size;
        memset(b->start, 0xEE, b->size);
        free(b->start); free(b);
        return OK;
    }
    return fail(INVALID_VALUE, "memory is freed that is not allocated");
}
Result cuMemGetInfo_v2(size_t *free_bytes, size_t *all) { NEED_CONTEXT("cuMemGetInfo"); *free_bytes = total - used; *all = total; return OK; }
Result cuMemAlloc_v2(Address *address, size_t size) { NEED_CONTEXT("cuMemAlloc"); LOCKED(allocate((void **)address, size, 1)); }
Result cuMemFree_v2(Address address) { NEED_CONTEXT("cuMemFree"); LOCKED(release((void *)address, 1)); }
Result cuMemHostAlloc(void **address, size_t size, unsigned flags) { (void)flags; NEED_CONTEXT("cuMemHostAlloc"); LOCKED(allocate(address, size, 0)); }
Result cuMemAllocHost_v2(void **address, size_t size) { NEED_CONTEXT("cuMemAllocHost"); LOCKED(allocate(address, size, 0)); }
Result cuMemFreeHost(void *address) { NEED_CONTEXT("cuMemFreeHost"); LOCKED(release(address, 0)); }

static Result copy(void *target, const void *source, size_t size, void *handle, int to_device) {
    Stream *s = stream_of(handle);
    if (!s) return fail(INVALID_HANDLE, "a copy in a stream that is not there");
    const void *on_device = to_device ? target : source, *on_host = to_device ? source : target;
    if (!block_of(on_device, size, 1)) return fail(ILLEGAL_ADDRESS, "a copy outside of device memory");
    if (!block_of(on_host, size, 0)) return fail(INVALID_VALUE, "a copy of memory that is not page-locked");
    if (!to_device) memset(target, 0xA5, size); /* nothing is there until the stream gets to it */
    Op *op = calloc(1, sizeof *op);
    op->kind = COPY; op->target = target; op->source = source; op->size = size;
    append(s, op);
    return OK;
}
Result cuMemcpyHtoDAsync_v2(Address d, const void *h, size_t n, void *s) { NEED_CONTEXT("cuMemcpyHtoDAsync"); LOCKED(copy((void *)d, h, n, s, 1)); }
Result cuMemcpyDtoHAsync_v2(void *h, Address d, size_t n, void *s) { NEED_CONTEXT("cuMemcpyDtoHAsync"); LOCKED(copy(h, (const void *)d, n, s, 0)); }

/* ---------------------------------------------------------------- streams and events */

Result cuStreamCreate(void **handle, unsigned flags) {
    NEED_CONTEXT("cuStreamCreate");
    if (flags != 1) return fail(INVALID_VALUE, "a stream that waits for the default stream");
    pthread_mutex_lock(&lock);
    Stream *s = calloc(1, sizeof *s);
    s->next = streams; streams = s; counts[0]++;
    pthread_mutex_unlock(&lock);
    *handle = s;
    return OK;
}
static Result destroy_stream(void *handle) {
    for (Stream **place = &streams; *place; place = &(*place)->next)
        if (*place == handle) {
            Stream *s = *place;
            if (s->first || s->running) return fail(INVALID_HANDLE, "a stream is destroyed while it has work");
            *place = s->next; counts[0]--;
            free(s);
            return OK;
        }
    return fail(INVALID_HANDLE, "a stream is destroyed that is not there");
}
Result cuStreamDestroy_v2(void *handle) { NEED_CONTEXT("cuStreamDestroy"); LOCKED(destroy_stream(handle)); }
static Result sync_stream(void *handle) { Stream *s = stream_of(handle); if (!s) return INVALID_HANDLE; run_all(s); return OK; }
Result cuStreamSynchronize(void *handle) { NEED_CONTEXT("cuStreamSynchronize"); LOCKED(sync_stream(handle)); }
Result cuStreamQuery(void *handle) { Stream *s = stream_of(handle); return !s ? INVALID_HANDLE : s->first || s->running ? NOT_READY : OK; }
Result cuStreamIsCapturing(void *handle, int *status) { Stream *s = stream_of(handle); if (!s) return INVALID_HANDLE; *status = s->capturing; return OK; }

Result cuEventCreate(void **handle, unsigned flags) {
    NEED_CONTEXT("cuEventCreate");
    (void)flags;
    Event *e = calloc(1, sizeof *e);
    e->references = 1;
    pthread_mutex_lock(&lock); counts[1]++; pthread_mutex_unlock(&lock);
    *handle = e;
    return OK;
}
Result cuEventDestroy_v2(void *handle) {
    NEED_CONTEXT("cuEventDestroy");
    Event *e = handle;
    pthread_mutex_lock(&lock);
    counts[1]--;
    if (--e->references == 0) free(e); /* what is queued keeps it */
    pthread_mutex_unlock(&lock);
    return OK;
}
static Result mark(Event *e, void *handle, Kind kind) {
    Stream *s = stream_of(handle);
    if (!s) return fail(INVALID_HANDLE, "an event in a stream that is not there");
    if (kind == WAIT && e->asked == 0) return OK; /* never recorded: holds nobody back */
    Op *op = calloc(1, sizeof *op);
    op->kind = kind; op->event = e;
    if (kind == MARK) { e->stream = s; e->asked++; }
    op->ticket = e->asked;
    e->references++;
    append(s, op);
    return OK;
}
Result cuEventRecord(void *e, void *s) { NEED_CONTEXT("cuEventRecord"); LOCKED(mark(e, s, MARK)); }
Result cuStreamWaitEvent(void *s, void *e, unsigned flags) {
    NEED_CONTEXT("cuStreamWaitEvent");
    if (flags) return fail(INVALID_VALUE, "flags of cuStreamWaitEvent");
    LOCKED(mark(e, s, WAIT));
}
static Result sync_event(Event *e) { run_to(e, e->asked); return OK; }
Result cuEventSynchronize(void *e) { NEED_CONTEXT("cuEventSynchronize"); LOCKED(sync_event(e)); }
Result cuEventQuery(void *handle) { NEED_CONTEXT("cuEventQuery"); Event *e = handle; return e->reached < e->asked ? NOT_READY : OK; }
static Result elapsed(float *ms, Event *a, Event *b) {
    if (a->reached < a->asked || b->reached < b->asked) return NOT_READY;
    *ms = (float)(b->at_ms - a->at_ms);
    return OK;
}
Result cuEventElapsedTime(float *ms, void *a, void *b) { NEED_CONTEXT("cuEventElapsedTime"); LOCKED(elapsed(ms, a, b)); }
Result cuEventElapsedTime_v2(float *ms, void *a, void *b) { return cuEventElapsedTime(ms, a, b); }

/* ---------------------------------------------------------------- graphs */

static Result begin(void *handle, int mode) {
    Stream *s = stream_of(handle);
    if (!s || s == &legacy) return fail(CAPTURE_UNSUPPORTED, "capture of the default stream");
    if (mode != 1) return fail(INVALID_VALUE, "a capture that is not thread-local");
    s->capturing = 1;
    return OK;
}
Result cuStreamBeginCapture_v2(void *handle, int mode) { NEED_CONTEXT("cuStreamBeginCapture"); LOCKED(begin(handle, mode)); }
static Result end(void *handle, void **graph) {
    Stream *s = stream_of(handle);
    if (!s || !s->capturing) return fail(INVALID_VALUE, "the end of a capture that was not begun");
    Graph *g = calloc(1, sizeof *g);
    g->first = s->captured;
    s->captured = s->captured_last = NULL; s->capturing = 0;
    counts[2]++;
    *graph = g;
    return OK;
}
Result cuStreamEndCapture(void *handle, void **graph) { NEED_CONTEXT("cuStreamEndCapture"); LOCKED(end(handle, graph)); }
static Op *copies(const Op *op) {
    Op *first = NULL, **place = &first;
    for (; op; op = op->next) {
        *place = malloc(sizeof *op);
        **place = *op;
        (*place)->next = NULL;
        place = &(*place)->next;
    }
    return first;
}
Result cuGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long flags) {
    NEED_CONTEXT("cuGraphInstantiate");
    if (flags) return fail(INVALID_VALUE, "flags of cuGraphInstantiate");
    Graph *made = calloc(1, sizeof *made);
    made->first = copies(((Graph *)graph)->first);
    counts[3]++;
    *exec = made;
    return OK;
}
static void free_ops(Op *op) { while (op) { Op *next = op->next; free(op); op = next; } }
Result cuGraphDestroy(void *graph) { counts[2]--; free_ops(((Graph *)graph)->first); free(graph); return OK; }
Result cuGraphExecDestroy(void *exec) { counts[3]--; free_ops(((Graph *)exec)->first); free(exec); return OK; }
static Result launch(void *exec, void *handle) {
    Stream *s = stream_of(handle);
    if (!s) return fail(INVALID_HANDLE, "a graph in a stream that is not there");
    for (Op *op = copies(((Graph *)exec)->first), *next; op; op = next) { next = op->next; append(s, op); }
    return OK;
}
Result cuGraphLaunch(void *exec, void *handle) { NEED_CONTEXT("cuGraphLaunch"); LOCKED(launch(exec, handle)); }

/* ---------------------------------------------------------------- kernels */

/* An image is the path of a library for the host. Of a kernel `name` it has `name_on_host`, which
   takes a pointer to the kernel's one argument, and `name_size`, that argument's size. */
typedef struct { HostFunction run; size_t size; } Kernel;
typedef struct { HostFunction run; char argument[512]; } Launch;

Result cuModuleLoadData(void **module, const void *image) {
    NEED_CONTEXT("cuModuleLoadData");
    *module = dlopen(image, RTLD_NOW);
    return *module ? OK : fail(INVALID_VALUE, "an image that is no library");
}
Result cuModuleLoadDataEx(void **module, const void *image, unsigned count, int *options, void **values) {
    (void)count; (void)options; (void)values;
    return cuModuleLoadData(module, image);
}
Result cuModuleUnload(void *module) { (void)module; return OK; }
Result cuModuleGetFunction(void **function, void *module, const char *name) {
    NEED_CONTEXT("cuModuleGetFunction");
    char whole[256];
    Kernel *kernel = calloc(1, sizeof *kernel);
    snprintf(whole, sizeof whole, "%s_on_host", name);
    *(void **)&kernel->run = dlsym(module, whole);
    snprintf(whole, sizeof whole, "%s_size", name);
    size_t *size = dlsym(module, whole);
    if (!kernel->run || !size || *size > 512) return NOT_FOUND;
    kernel->size = *size;
    *function = kernel;
    return OK;
}
Result cuFuncGetAttribute(int *value, int attribute, void *function) { (void)attribute; (void)function; *value = 0; return OK; }
/* Deprecated, but PyCUDA calls it before every launch. */
Result cuFuncSetBlockShape(void *function, int x, int y, int z) { (void)function; return x && y && z ? OK : INVALID_VALUE; }
static void run_launch(void *data) { Launch *l = data; l->run(l->argument); free(l); }
Result fake_enqueue(void *handle, HostFunction function, void *data);
Result cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, void *stream, void **parameters, void **extra) {
    NEED_CONTEXT("cuLaunchKernel");
    Kernel *kernel = function;
    if (!gx || !gy || !gz || bx * by * bz > 1024 || !bx || !by || !bz || shared) return fail(INVALID_VALUE, "a grid or block that cannot be");
    const void *argument = NULL;
    size_t size = kernel->size;
    if (parameters) argument = parameters[0];
    for (; extra && *extra; extra += 2) { /* CU_LAUNCH_PARAM_BUFFER_POINTER, .._SIZE */
        if (*extra == (void *)1) argument = extra[1];
        if (*extra == (void *)2) size = *(size_t *)extra[1];
    }
    if (!argument || size != kernel->size) return fail(INVALID_VALUE, "a kernel's argument of another size");
    Launch *launch = calloc(1, sizeof *launch);
    launch->run = kernel->run;
    memcpy(launch->argument, argument, size);
    return fake_enqueue(stream, run_launch, launch);
}

/* ---------------------------------------------------------------- errors, names */

Result cuGetErrorString(int error, const char **text) { (void)error; *text = "fake error"; return OK; }
Result cuGetErrorName(int error, const char **text) {
    *text = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_FAKE";
    return OK;
}
Result cuGetProcAddress_v2(const char *name, void **address, int version, unsigned long long flags, int *status) {
    static const char *suffixes[] = {"_v2", ""};
    (void)version; (void)flags;
    void *self = dlopen("libcuda.so.1", RTLD_NOLOAD | RTLD_LAZY);
    *address = NULL;
    for (int i = 0; i < 2 && !*address && self; i++) {
        char whole[256];
        snprintf(whole, sizeof whole, "%s%s", name, suffixes[i]);
        *address = dlsym(self, whole);
    }
    if (!*address && self && !strcmp(name, "cuGraphInstantiate")) *address = dlsym(self, "cuGraphInstantiateWithFlags");
    if (self) dlclose(self);
    if (status) *status = *address ? 0 : 1;
    return *address ? OK : NOT_FOUND;
}

/* ---------------------------------------------------------------- for the tests */

/* Queue a function, as TensorRT queues kernels. */
Result fake_enqueue(void *handle, HostFunction function, void *data) {
    pthread_mutex_lock(&lock);
    Stream *s = stream_of(handle);
    if (s) {
        Op *op = calloc(1, sizeof *op);
        op->kind = HOST; op->function = function; op->data = data;
        append(s, op);
    }
    pthread_mutex_unlock(&lock);
    return s ? OK : INVALID_HANDLE;
}
int fake_is_device_memory(const void *address, size_t size) {
    pthread_mutex_lock(&lock);
    int found = block_of(address, size, 1) != NULL;
    pthread_mutex_unlock(&lock);
    return found;
}
size_t fake_free_bytes(void) { return total - used; }
int fake_context_depth(void) { return depth; }
/* Live blocks, streams, events, graphs, graph execs and references to the primary context. */
void fake_leftovers(int found[6]) {
    found[0] = 0;
    for (Block *b = blocks; b; b = b->next) found[0]++;
    for (int i = 0; i < 4; i++) found[1 + i] = counts[i];
    found[5] = retained;
}
#include "fake_names.h"
