#include "benchmarks/support_card.h"

#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/clock.h"

#define READ_BYTES ((size_t)2 << 30)
#define PASSES 8
#define ROUNDS 5
#define THREADS 512u
#define BLOCKS_PER_PROCESSOR 4u
#define ATTRIBUTE_PROCESSORS 16 /* CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT */

/* Each thread reads 8 x 16 bytes at a time and folds them; what comes out is written only if it has an unlikely value,
 * so that the loads are not left out. `count` is in 16 bytes. */
static const char read_kernel[] =
    ".version 6.0\n.target sm_70\n.address_size 64\n"
    ".visible .entry read_all(.param .u64 data, .param .u64 count, .param .u64 out)\n"
    "{\n"
    ".reg .pred %p<3>;\n.reg .b32 %r<8>;\n.reg .b32 %v<32>;\n.reg .b64 %d<8>;\n"
    "ld.param.u64 %d0, [data];\nld.param.u64 %d1, [count];\nld.param.u64 %d2, [out];\n"
    "mov.u32 %r0, %ctaid.x;\nmov.u32 %r1, %tid.x;\nmov.u32 %r2, %nctaid.x;\n"
    "mul.wide.u32 %d3, %r0, 65536;\nmul.wide.u32 %d4, %r1, 16;\nadd.u64 %d3, %d3, %d4;\n" /* this thread's offset */
    "mul.wide.u32 %d4, %r2, 65536;\nshl.b64 %d1, %d1, 4;\nsub.u64 %d1, %d1, 65536;\n"
    "mov.u32 %r3, 0;\n"
    "again:\n"
    "setp.gt.u64 %p0, %d3, %d1;\n@%p0 bra done;\n"
    "add.u64 %d5, %d0, %d3;\n"
    "ld.global.nc.v4.u32 {%v0, %v1, %v2, %v3}, [%d5];\n"
    "ld.global.nc.v4.u32 {%v4, %v5, %v6, %v7}, [%d5+8192];\n"
    "ld.global.nc.v4.u32 {%v8, %v9, %v10, %v11}, [%d5+16384];\n"
    "ld.global.nc.v4.u32 {%v12, %v13, %v14, %v15}, [%d5+24576];\n"
    "ld.global.nc.v4.u32 {%v16, %v17, %v18, %v19}, [%d5+32768];\n"
    "ld.global.nc.v4.u32 {%v20, %v21, %v22, %v23}, [%d5+40960];\n"
    "ld.global.nc.v4.u32 {%v24, %v25, %v26, %v27}, [%d5+49152];\n"
    "ld.global.nc.v4.u32 {%v28, %v29, %v30, %v31}, [%d5+57344];\n"
#define FOLD(a, b, c, d)                                                                                               \
    "xor.b32 %r3, %r3, %v" #a ";\nxor.b32 %r3, %r3, %v" #b ";\nxor.b32 %r3, %r3, %v" #c ";\nxor.b32 %r3, %r3, %v" #d   \
    ";\n"
    FOLD(0, 1, 2, 3) FOLD(4, 5, 6, 7) FOLD(8, 9, 10, 11) FOLD(12, 13, 14, 15)           /**/
    FOLD(16, 17, 18, 19) FOLD(20, 21, 22, 23) FOLD(24, 25, 26, 27) FOLD(28, 29, 30, 31) /**/
#undef FOLD
    "add.u64 %d3, %d3, %d4;\nbra again;\n"
    "done:\n"
    "setp.eq.u32 %p1, %r3, 0x9e3779b9;\n@%p1 st.global.u32 [%d2], %r3;\n"
    "ret;\n}\n";

/* The driver's calls by the names in its library, with the types that they have there. */
struct driver {
    int (*cuInit)(unsigned);
    int (*cuDeviceGet)(int *, int);
    int (*cuDeviceGetName)(char *, int, int);
    int (*cuDeviceGetAttribute)(int *, int, int);
    int (*cuDevicePrimaryCtxRetain)(void **, int);
    int (*cuCtxSetCurrent)(void *);
    int (*cuCtxSynchronize)(void);
    int (*cuModuleLoadData)(void **, const void *);
    int (*cuModuleGetFunction)(void **, void *, const char *);
    int (*cuMemAlloc_v2)(uint64_t *, size_t);
    int (*cuMemFree_v2)(uint64_t);
    int (*cuMemsetD8_v2)(uint64_t, unsigned char, size_t);
    int (*cuLaunchKernel)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **,
                          void **);
    int (*cuGetErrorName)(int, const char **);
};

static enum status open_driver(struct driver *driver) {
    const struct {
        const char *name;
        void **call;
    } symbols[] = {
#define SYMBOL(name) {#name, (void **)&driver->name}
        SYMBOL(cuInit),
        SYMBOL(cuDeviceGet),
        SYMBOL(cuDeviceGetName),
        SYMBOL(cuDeviceGetAttribute),
        SYMBOL(cuDevicePrimaryCtxRetain),
        SYMBOL(cuCtxSetCurrent),
        SYMBOL(cuCtxSynchronize),
        SYMBOL(cuModuleLoadData),
        SYMBOL(cuModuleGetFunction),
        SYMBOL(cuMemAlloc_v2),
        SYMBOL(cuMemFree_v2),
        SYMBOL(cuMemsetD8_v2),
        SYMBOL(cuLaunchKernel),
        SYMBOL(cuGetErrorName),
#undef SYMBOL
    };
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        FAIL(STATUS_UNSUPPORTED, "no driver of cards: %s", dlerror());
    }
    for (size_t i = 0; i < sizeof symbols / sizeof symbols[0]; i++) {
        *symbols[i].call = dlsym(library, symbols[i].name);
        if (*symbols[i].call == NULL) {
            FAIL(STATUS_UNSUPPORTED, "libcuda.so.1 has no %s", symbols[i].name);
        }
    }
    return STATUS_OK;
}

static enum status result_of(const struct driver *driver, int error, const char *call) {
    if (error == 0) {
        return STATUS_OK;
    }
    const char *name = "";
    driver->cuGetErrorName(error, &name);
    FAIL(STATUS_UNSUPPORTED, "%s: %s", call, name);
}

#define DRIVER_TRY(call, ...) TRY(result_of(driver, driver->call(__VA_ARGS__), #call))

static enum status read_passes(const struct driver *driver, void *kernel, unsigned blocks, uint64_t data,
                               double *rate) {
    uint64_t count = READ_BYTES / 16;
    void *arguments[] = {&data, &count, &data};
    for (int round = 0; round <= ROUNDS; round++) { /* the first one wakes the card */
        uint64_t start_ns = clock_now_ns();
        for (int pass = 0; pass < PASSES; pass++) {
            DRIVER_TRY(cuLaunchKernel, kernel, blocks, 1, 1, THREADS, 1, 1, 0, NULL, arguments, NULL);
        }
        DRIVER_TRY(cuCtxSynchronize);
        double seen = (double)READ_BYTES * PASSES * 1e9 / (double)(clock_now_ns() - start_ns);
        *rate = round > 0 && seen > *rate ? seen : *rate;
    }
    return STATUS_OK;
}

static enum status measure_on(const struct driver *driver, int ordinal, struct card_ceiling *ceiling) {
    int device = 0;
    int processors = 0;
    void *context = NULL;
    void *module = NULL;
    void *kernel = NULL;
    uint64_t data = 0;
    DRIVER_TRY(cuInit, 0);
    DRIVER_TRY(cuDeviceGet, &device, ordinal);
    DRIVER_TRY(cuDeviceGetName, ceiling->name, (int)sizeof ceiling->name, device);
    DRIVER_TRY(cuDeviceGetAttribute, &processors, ATTRIBUTE_PROCESSORS, device);
    DRIVER_TRY(cuDevicePrimaryCtxRetain, &context, device);
    DRIVER_TRY(cuCtxSetCurrent, context);
    DRIVER_TRY(cuModuleLoadData, &module, read_kernel);
    DRIVER_TRY(cuModuleGetFunction, &kernel, module, "read_all");
    if (driver->cuMemAlloc_v2(&data, READ_BYTES) != 0) {
        FAIL(STATUS_LIMIT, "card %d has no %zu MiB free to read from", ordinal, READ_BYTES >> 20);
    }
    enum status status = result_of(driver, driver->cuMemsetD8_v2(data, 0x3c, READ_BYTES), "cuMemsetD8");
    if (status == STATUS_OK) {
        status = read_passes(driver, kernel, (unsigned)processors * BLOCKS_PER_PROCESSOR, data, &ceiling->read_rate);
    }
    driver->cuMemFree_v2(data);
    return status;
}

enum status card_measure(int ordinal, struct card_ceiling *ceiling) {
    static struct driver driver;
    *ceiling = (struct card_ceiling){.read_rate = 0};
    TRY(open_driver(&driver));
    return measure_on(&driver, ordinal, ceiling);
}
