/* What a device plug-in exports: C, no LibTorch, nothing to link. A plug-in is a shared library
 * that needle-train and needle-eval load when they start (--device-plugin PATH,
 * NEEDLE_DEVICE_PLUGIN). Loading registers its LibTorch backend, most often under the name that
 * PrivateUse1 takes from c10::register_privateuse1_backend; then the entry point is called once,
 * from the main thread.
 *
 * LibTorch has no stable C++ binary interface: build a plug-in against the very LibTorch that the
 * program runs with, and compare `torch_version`. docs/devices.md has the details. */
#ifndef NEEDLE_TRAIN_DEVICE_PLUGIN_API_H_
#define NEEDLE_TRAIN_DEVICE_PLUGIN_API_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define NEEDLE_DEVICE_PLUGIN_VERSION 1
#define NEEDLE_DEVICE_PLUGIN_ENTRY "needle_device_plugin"

/* What the program tells the plug-in. Lives until the program ends. */
typedef struct NeedleDeviceHost {
  uint32_t version;          /* NEEDLE_DEVICE_PLUGIN_VERSION of the program */
  const char* torch_version; /* that the program was built with: "2.15.0" */
} NeedleDeviceHost;

/* Asks for a process group of one run. */
typedef struct NeedleGroupRequest {
  void* store; /* c10d::Store*, of this group alone; the plug-in takes a reference of its own */
  int32_t rank;
  int32_t size;
  int32_t device_index;
  double timeout_s; /* after which an exchange may give up */
} NeedleGroupRequest;

/* What the plug-in tells the program. Lives until the program ends. */
typedef struct NeedleDevicePlugin {
  uint32_t version;   /* NEEDLE_DEVICE_PLUGIN_VERSION of the plug-in */
  const char* name;   /* for messages: "cuda", "acme npu 1.2" */
  const char* device; /* the device type that it serves, as --device takes it: "cuda", "acme" */
  int32_t bfloat16;   /* not 0: `auto` computes in bfloat16, which is faster there than float32 */

  /* A c10d::Backend* with one reference for the caller, which the ranks exchange the device's
   * tensors through: allreduce (sum), reduce, broadcast of contiguous float32 and int64. Its work's
   * wait() may return once the device's current stream waits. NULL as pointer: the device has none,
   * ranks exchange through host memory. NULL as result: failed, and `error` says why. */
  void* (*create_group)(const NeedleGroupRequest* request, char* error, size_t error_size);
} NeedleDevicePlugin;

/* The entry point, "needle_device_plugin". NULL: it cannot be used, and `error` (at most
 * `error_size` bytes with the final 0) says why. Exceptions must not leave it. */
typedef const NeedleDevicePlugin* (*NeedleDevicePluginEntry)(const NeedleDeviceHost* host,
                                                             char* error, size_t error_size);

#ifdef __cplusplus
}
#endif

#endif
