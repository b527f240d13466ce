// Made by `cargo xtask bindings` from cann.h; do not edit.

/// Types and numbers.
pub mod types {
pub type aclError = ::std::os::raw::c_int;
pub type aclnnStatus = i32;
pub type aclrtContext = *mut ::std::os::raw::c_void;
pub type aclrtStream = *mut ::std::os::raw::c_void;
pub type aclrtEvent = *mut ::std::os::raw::c_void;
#[repr(C)]
#[derive(Debug)]
pub struct aclTensor {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct aclIntArray {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct aclTensorList {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct aclOpExecutor {
    _unused: [u8; 0],
}
pub const ACL_MEMCPY_HOST_TO_HOST: aclrtMemcpyKind = 0;
pub const ACL_MEMCPY_HOST_TO_DEVICE: aclrtMemcpyKind = 1;
pub const ACL_MEMCPY_DEVICE_TO_HOST: aclrtMemcpyKind = 2;
pub const ACL_MEMCPY_DEVICE_TO_DEVICE: aclrtMemcpyKind = 3;
pub type aclrtMemcpyKind = ::std::os::raw::c_uint;
pub const ACL_MEM_MALLOC_HUGE_FIRST: aclrtMemMallocPolicy = 0;
pub const ACL_MEM_MALLOC_HUGE_ONLY: aclrtMemMallocPolicy = 1;
pub const ACL_MEM_MALLOC_NORMAL_ONLY: aclrtMemMallocPolicy = 2;
pub type aclrtMemMallocPolicy = ::std::os::raw::c_uint;
pub const ACL_DDR_MEM: aclrtMemAttr = 0;
pub const ACL_HBM_MEM: aclrtMemAttr = 1;
pub type aclrtMemAttr = ::std::os::raw::c_uint;
pub const ACL_RT_OVERFLOW_MODE_SATURATION: aclrtFloatOverflowMode = 0;
pub const ACL_RT_OVERFLOW_MODE_INFNAN: aclrtFloatOverflowMode = 1;
pub type aclrtFloatOverflowMode = ::std::os::raw::c_uint;
pub const ACL_OPT_DETERMINISTIC: aclSysParamOpt = 0;
pub type aclSysParamOpt = ::std::os::raw::c_uint;
pub const ACL_DT_UNDEFINED: aclDataType = -1;
pub const ACL_FLOAT: aclDataType = 0;
pub const ACL_FLOAT16: aclDataType = 1;
pub const ACL_INT8: aclDataType = 2;
pub const ACL_INT32: aclDataType = 3;
pub const ACL_INT64: aclDataType = 9;
pub const ACL_UINT64: aclDataType = 10;
pub const ACL_BF16: aclDataType = 27;
pub const ACL_INT4: aclDataType = 29;
pub type aclDataType = ::std::os::raw::c_int;
pub const ACL_FORMAT_UNDEFINED: aclFormat = -1;
pub const ACL_FORMAT_ND: aclFormat = 2;
pub const ACL_FORMAT_FRACTAL_NZ: aclFormat = 29;
pub type aclFormat = ::std::os::raw::c_int;
pub const ACL_SUCCESS: _bindgen_ty_1 = 0;
pub const ACL_ERROR_INVALID_PARAM: _bindgen_ty_1 = 100000;
pub const ACL_ERROR_UNINITIALIZE: _bindgen_ty_1 = 100001;
pub const ACL_ERROR_REPEAT_INITIALIZE: _bindgen_ty_1 = 100002;
pub const ACL_ERROR_RT_PARAM_INVALID: _bindgen_ty_1 = 107000;
pub const ACL_ERROR_RT_INVALID_DEVICEID: _bindgen_ty_1 = 107001;
pub const ACL_ERROR_RT_CONTEXT_NULL: _bindgen_ty_1 = 107002;
pub const ACL_ERROR_RT_STREAM_CONTEXT: _bindgen_ty_1 = 107003;
pub const ACL_ERROR_RT_ADDR_UNALIGNED: _bindgen_ty_1 = 107008;
pub const ACL_ERROR_RT_INVALID_HANDLE: _bindgen_ty_1 = 107017;
pub const ACL_ERROR_RT_WAIT_TIMEOUT: _bindgen_ty_1 = 107019;
pub const ACL_ERROR_BAD_ALLOC: _bindgen_ty_1 = 200000;
pub const ACL_ERROR_UNSUPPORTED_FEATURE: _bindgen_ty_1 = 200006;
pub const ACL_ERROR_RT_FEATURE_NOT_SUPPORT: _bindgen_ty_1 = 207000;
pub const ACL_ERROR_RT_MEMORY_ALLOCATION: _bindgen_ty_1 = 207001;
pub const ACL_ERROR_RT_MEMORY_FREE: _bindgen_ty_1 = 207002;
pub const ACL_ERROR_RT_NO_DEVICE: _bindgen_ty_1 = 207004;
pub const ACL_ERROR_RT_DEVICE_OOM: _bindgen_ty_1 = 207018;
pub const ACL_ERROR_INTERNAL_ERROR: _bindgen_ty_1 = 500000;
pub const ACL_ERROR_RT_INTERNAL_ERROR: _bindgen_ty_1 = 507000;
pub const ACL_ERROR_RT_AICORE_TIMEOUT: _bindgen_ty_1 = 507014;
pub const ACL_ERROR_RT_AICORE_EXCEPTION: _bindgen_ty_1 = 507015;
pub const ACL_ERROR_RT_STREAM_SYNC_TIMEOUT: _bindgen_ty_1 = 507046;
pub const ACLNN_ERR_PARAM_NULLPTR: _bindgen_ty_1 = 161001;
pub const ACLNN_ERR_PARAM_INVALID: _bindgen_ty_1 = 161002;
pub const ACLNN_ERR_RUNTIME_ERROR: _bindgen_ty_1 = 361001;
pub const ACLNN_ERR_INNER: _bindgen_ty_1 = 561000;
pub const ACLNN_ERR_INNER_INFERSHAPE_ERROR: _bindgen_ty_1 = 561001;
pub const ACLNN_ERR_INNER_TILING_ERROR: _bindgen_ty_1 = 561002;
pub const ACLNN_ERR_INNER_FIND_KERNEL_ERROR: _bindgen_ty_1 = 561003;
pub const ACLNN_ERR_INNER_CREATE_EXECUTOR: _bindgen_ty_1 = 561101;
pub const ACLNN_ERR_INNER_NULLPTR: _bindgen_ty_1 = 561103;
pub const ACLNN_ERR_INNER_OPP_PATH_NOT_FOUND: _bindgen_ty_1 = 561107;
pub const ACLNN_ERR_INNER_OPP_KERNEL_PKG_NOT_FOUND: _bindgen_ty_1 = 561112;
pub type _bindgen_ty_1 = ::std::os::raw::c_uint;
}

/// Devices, contexts, streams, events and memory.
pub mod runtime {
use super::types::*;

pub struct Runtime {
    __library: ::libloading::Library,
    pub aclInit: Result<
        unsafe extern "C" fn(configPath: *const ::std::os::raw::c_char) -> aclError,
        ::libloading::Error,
    >,
    pub aclFinalize: Result<unsafe extern "C" fn() -> aclError, ::libloading::Error>,
    pub aclGetRecentErrMsg: Result<
        unsafe extern "C" fn() -> *const ::std::os::raw::c_char,
        ::libloading::Error,
    >,
    pub aclrtSetDevice: Result<
        unsafe extern "C" fn(deviceId: i32) -> aclError,
        ::libloading::Error,
    >,
    pub aclrtResetDevice: Result<
        unsafe extern "C" fn(deviceId: i32) -> aclError,
        ::libloading::Error,
    >,
    pub aclrtGetDeviceCount: Result<
        unsafe extern "C" fn(count: *mut u32) -> aclError,
        ::libloading::Error,
    >,
    pub aclrtGetSocName: Result<
        unsafe extern "C" fn() -> *const ::std::os::raw::c_char,
        ::libloading::Error,
    >,
    pub aclrtGetVersion: Result<
        unsafe extern "C" fn(
            majorVersion: *mut i32,
            minorVersion: *mut i32,
            patchVersion: *mut i32,
        ) -> aclError,
        ::libloading::Error,
    >,
    pub aclsysGetVersionStr: Result<
        unsafe extern "C" fn(
            pkgName: *mut ::std::os::raw::c_char,
            versionStr: *mut ::std::os::raw::c_char,
        ) -> aclError,
        ::libloading::Error,
    >,
    pub aclrtCreateContext: Result<
        unsafe extern "C" fn(context: *mut aclrtContext, deviceId: i32) -> aclError,
        ::libloading::Error,
    >,
    pub aclrtDestroyContext: Result<
        unsafe extern "C" fn(context: aclrtContext) -> aclError,
        ::libloading::Error,
    >,
    pub aclrtSetCurrentContext: Result<
        unsafe extern "C" fn(context: aclrtContext) -> aclError,
        ::libloading::Error,
    >,
    pub aclrtCreateStream: Result<
        unsafe extern "C" fn(stream: *mut aclrtStream) -> aclError,
        ::libloading::Error,
    >,
    pub aclrtDestroyStream: Result<
        unsafe extern "C" fn(stream: aclrtStream) -> aclError,
        ::libloading::Error,
    >,
    pub aclrtSynchronizeStream: Result<
        unsafe extern "C" fn(stream: aclrtStream) -> aclError,
        ::libloading::Error,
    >,
    pub aclrtCreateEvent: Result<
        unsafe extern "C" fn(event: *mut aclrtEvent) -> aclError,
        ::libloading::Error,
    >,
    pub aclrtDestroyEvent: Result<
        unsafe extern "C" fn(event: aclrtEvent) -> aclError,
        ::libloading::Error,
    >,
    pub aclrtRecordEvent: Result<
        unsafe extern "C" fn(event: aclrtEvent, stream: aclrtStream) -> aclError,
        ::libloading::Error,
    >,
    pub aclrtStreamWaitEvent: Result<
        unsafe extern "C" fn(stream: aclrtStream, event: aclrtEvent) -> aclError,
        ::libloading::Error,
    >,
    pub aclrtSynchronizeEvent: Result<
        unsafe extern "C" fn(event: aclrtEvent) -> aclError,
        ::libloading::Error,
    >,
    pub aclrtEventElapsedTime: Result<
        unsafe extern "C" fn(
            ms: *mut f32,
            startEvent: aclrtEvent,
            endEvent: aclrtEvent,
        ) -> aclError,
        ::libloading::Error,
    >,
    pub aclrtMalloc: Result<
        unsafe extern "C" fn(
            devPtr: *mut *mut ::std::os::raw::c_void,
            size: usize,
            policy: aclrtMemMallocPolicy,
        ) -> aclError,
        ::libloading::Error,
    >,
    pub aclrtFree: Result<
        unsafe extern "C" fn(devPtr: *mut ::std::os::raw::c_void) -> aclError,
        ::libloading::Error,
    >,
    pub aclrtMallocHost: Result<
        unsafe extern "C" fn(
            hostPtr: *mut *mut ::std::os::raw::c_void,
            size: usize,
        ) -> aclError,
        ::libloading::Error,
    >,
    pub aclrtFreeHost: Result<
        unsafe extern "C" fn(hostPtr: *mut ::std::os::raw::c_void) -> aclError,
        ::libloading::Error,
    >,
    pub aclrtMemcpy: Result<
        unsafe extern "C" fn(
            dst: *mut ::std::os::raw::c_void,
            destMax: usize,
            src: *const ::std::os::raw::c_void,
            count: usize,
            kind: aclrtMemcpyKind,
        ) -> aclError,
        ::libloading::Error,
    >,
    pub aclrtMemcpyAsync: Result<
        unsafe extern "C" fn(
            dst: *mut ::std::os::raw::c_void,
            destMax: usize,
            src: *const ::std::os::raw::c_void,
            count: usize,
            kind: aclrtMemcpyKind,
            stream: aclrtStream,
        ) -> aclError,
        ::libloading::Error,
    >,
    pub aclrtGetMemInfo: Result<
        unsafe extern "C" fn(
            attr: aclrtMemAttr,
            free: *mut usize,
            total: *mut usize,
        ) -> aclError,
        ::libloading::Error,
    >,
    pub aclrtCtxSetSysParamOpt: Result<
        unsafe extern "C" fn(opt: aclSysParamOpt, value: i64) -> aclError,
        ::libloading::Error,
    >,
    pub aclrtSetDeviceSatMode: Result<
        unsafe extern "C" fn(mode: aclrtFloatOverflowMode) -> aclError,
        ::libloading::Error,
    >,
    pub aclrtGetDeviceSatMode: Result<
        unsafe extern "C" fn(mode: *mut aclrtFloatOverflowMode) -> aclError,
        ::libloading::Error,
    >,
}
impl Runtime {
    pub unsafe fn new<P>(path: P) -> Result<Self, ::libloading::Error>
    where
        P: AsRef<::std::ffi::OsStr>,
    {
        let path = path.as_ref();
        let library = unsafe { ::libloading::Library::new(path) }?;
        unsafe { Self::from_library(library) }
    }
    pub unsafe fn from_library<L>(library: L) -> Result<Self, ::libloading::Error>
    where
        L: Into<::libloading::Library>,
    {
        let __library = library.into();
        let aclInit = unsafe { __library.get(b"aclInit\0") }.map(|sym| *sym);
        let aclFinalize = unsafe { __library.get(b"aclFinalize\0") }.map(|sym| *sym);
        let aclGetRecentErrMsg = unsafe { __library.get(b"aclGetRecentErrMsg\0") }
            .map(|sym| *sym);
        let aclrtSetDevice = unsafe { __library.get(b"aclrtSetDevice\0") }
            .map(|sym| *sym);
        let aclrtResetDevice = unsafe { __library.get(b"aclrtResetDevice\0") }
            .map(|sym| *sym);
        let aclrtGetDeviceCount = unsafe { __library.get(b"aclrtGetDeviceCount\0") }
            .map(|sym| *sym);
        let aclrtGetSocName = unsafe { __library.get(b"aclrtGetSocName\0") }
            .map(|sym| *sym);
        let aclrtGetVersion = unsafe { __library.get(b"aclrtGetVersion\0") }
            .map(|sym| *sym);
        let aclsysGetVersionStr = unsafe { __library.get(b"aclsysGetVersionStr\0") }
            .map(|sym| *sym);
        let aclrtCreateContext = unsafe { __library.get(b"aclrtCreateContext\0") }
            .map(|sym| *sym);
        let aclrtDestroyContext = unsafe { __library.get(b"aclrtDestroyContext\0") }
            .map(|sym| *sym);
        let aclrtSetCurrentContext = unsafe {
            __library.get(b"aclrtSetCurrentContext\0")
        }
            .map(|sym| *sym);
        let aclrtCreateStream = unsafe { __library.get(b"aclrtCreateStream\0") }
            .map(|sym| *sym);
        let aclrtDestroyStream = unsafe { __library.get(b"aclrtDestroyStream\0") }
            .map(|sym| *sym);
        let aclrtSynchronizeStream = unsafe {
            __library.get(b"aclrtSynchronizeStream\0")
        }
            .map(|sym| *sym);
        let aclrtCreateEvent = unsafe { __library.get(b"aclrtCreateEvent\0") }
            .map(|sym| *sym);
        let aclrtDestroyEvent = unsafe { __library.get(b"aclrtDestroyEvent\0") }
            .map(|sym| *sym);
        let aclrtRecordEvent = unsafe { __library.get(b"aclrtRecordEvent\0") }
            .map(|sym| *sym);
        let aclrtStreamWaitEvent = unsafe { __library.get(b"aclrtStreamWaitEvent\0") }
            .map(|sym| *sym);
        let aclrtSynchronizeEvent = unsafe { __library.get(b"aclrtSynchronizeEvent\0") }
            .map(|sym| *sym);
        let aclrtEventElapsedTime = unsafe { __library.get(b"aclrtEventElapsedTime\0") }
            .map(|sym| *sym);
        let aclrtMalloc = unsafe { __library.get(b"aclrtMalloc\0") }.map(|sym| *sym);
        let aclrtFree = unsafe { __library.get(b"aclrtFree\0") }.map(|sym| *sym);
        let aclrtMallocHost = unsafe { __library.get(b"aclrtMallocHost\0") }
            .map(|sym| *sym);
        let aclrtFreeHost = unsafe { __library.get(b"aclrtFreeHost\0") }.map(|sym| *sym);
        let aclrtMemcpy = unsafe { __library.get(b"aclrtMemcpy\0") }.map(|sym| *sym);
        let aclrtMemcpyAsync = unsafe { __library.get(b"aclrtMemcpyAsync\0") }
            .map(|sym| *sym);
        let aclrtGetMemInfo = unsafe { __library.get(b"aclrtGetMemInfo\0") }
            .map(|sym| *sym);
        let aclrtCtxSetSysParamOpt = unsafe {
            __library.get(b"aclrtCtxSetSysParamOpt\0")
        }
            .map(|sym| *sym);
        let aclrtSetDeviceSatMode = unsafe { __library.get(b"aclrtSetDeviceSatMode\0") }
            .map(|sym| *sym);
        let aclrtGetDeviceSatMode = unsafe { __library.get(b"aclrtGetDeviceSatMode\0") }
            .map(|sym| *sym);
        Ok(Runtime {
            __library,
            aclInit,
            aclFinalize,
            aclGetRecentErrMsg,
            aclrtSetDevice,
            aclrtResetDevice,
            aclrtGetDeviceCount,
            aclrtGetSocName,
            aclrtGetVersion,
            aclsysGetVersionStr,
            aclrtCreateContext,
            aclrtDestroyContext,
            aclrtSetCurrentContext,
            aclrtCreateStream,
            aclrtDestroyStream,
            aclrtSynchronizeStream,
            aclrtCreateEvent,
            aclrtDestroyEvent,
            aclrtRecordEvent,
            aclrtStreamWaitEvent,
            aclrtSynchronizeEvent,
            aclrtEventElapsedTime,
            aclrtMalloc,
            aclrtFree,
            aclrtMallocHost,
            aclrtFreeHost,
            aclrtMemcpy,
            aclrtMemcpyAsync,
            aclrtGetMemInfo,
            aclrtCtxSetSysParamOpt,
            aclrtSetDeviceSatMode,
            aclrtGetDeviceSatMode,
        })
    }
    pub unsafe fn aclInit(&self, configPath: *const ::std::os::raw::c_char) -> aclError {
        unsafe {
            (self.aclInit.as_ref().expect("Expected function, got error."))(configPath)
        }
    }
    pub unsafe fn aclFinalize(&self) -> aclError {
        unsafe { (self.aclFinalize.as_ref().expect("Expected function, got error."))() }
    }
    pub unsafe fn aclGetRecentErrMsg(&self) -> *const ::std::os::raw::c_char {
        unsafe {
            (self.aclGetRecentErrMsg.as_ref().expect("Expected function, got error."))()
        }
    }
    pub unsafe fn aclrtSetDevice(&self, deviceId: i32) -> aclError {
        unsafe {
            (self
                .aclrtSetDevice
                .as_ref()
                .expect("Expected function, got error."))(deviceId)
        }
    }
    pub unsafe fn aclrtResetDevice(&self, deviceId: i32) -> aclError {
        unsafe {
            (self
                .aclrtResetDevice
                .as_ref()
                .expect("Expected function, got error."))(deviceId)
        }
    }
    pub unsafe fn aclrtGetDeviceCount(&self, count: *mut u32) -> aclError {
        unsafe {
            (self
                .aclrtGetDeviceCount
                .as_ref()
                .expect("Expected function, got error."))(count)
        }
    }
    pub unsafe fn aclrtGetSocName(&self) -> *const ::std::os::raw::c_char {
        unsafe {
            (self.aclrtGetSocName.as_ref().expect("Expected function, got error."))()
        }
    }
    pub unsafe fn aclrtGetVersion(
        &self,
        majorVersion: *mut i32,
        minorVersion: *mut i32,
        patchVersion: *mut i32,
    ) -> aclError {
        unsafe {
            (self
                .aclrtGetVersion
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(majorVersion, minorVersion, patchVersion)
        }
    }
    pub unsafe fn aclsysGetVersionStr(
        &self,
        pkgName: *mut ::std::os::raw::c_char,
        versionStr: *mut ::std::os::raw::c_char,
    ) -> aclError {
        unsafe {
            (self
                .aclsysGetVersionStr
                .as_ref()
                .expect("Expected function, got error."))(pkgName, versionStr)
        }
    }
    pub unsafe fn aclrtCreateContext(
        &self,
        context: *mut aclrtContext,
        deviceId: i32,
    ) -> aclError {
        unsafe {
            (self
                .aclrtCreateContext
                .as_ref()
                .expect("Expected function, got error."))(context, deviceId)
        }
    }
    pub unsafe fn aclrtDestroyContext(&self, context: aclrtContext) -> aclError {
        unsafe {
            (self
                .aclrtDestroyContext
                .as_ref()
                .expect("Expected function, got error."))(context)
        }
    }
    pub unsafe fn aclrtSetCurrentContext(&self, context: aclrtContext) -> aclError {
        unsafe {
            (self
                .aclrtSetCurrentContext
                .as_ref()
                .expect("Expected function, got error."))(context)
        }
    }
    pub unsafe fn aclrtCreateStream(&self, stream: *mut aclrtStream) -> aclError {
        unsafe {
            (self
                .aclrtCreateStream
                .as_ref()
                .expect("Expected function, got error."))(stream)
        }
    }
    pub unsafe fn aclrtDestroyStream(&self, stream: aclrtStream) -> aclError {
        unsafe {
            (self
                .aclrtDestroyStream
                .as_ref()
                .expect("Expected function, got error."))(stream)
        }
    }
    pub unsafe fn aclrtSynchronizeStream(&self, stream: aclrtStream) -> aclError {
        unsafe {
            (self
                .aclrtSynchronizeStream
                .as_ref()
                .expect("Expected function, got error."))(stream)
        }
    }
    pub unsafe fn aclrtCreateEvent(&self, event: *mut aclrtEvent) -> aclError {
        unsafe {
            (self
                .aclrtCreateEvent
                .as_ref()
                .expect("Expected function, got error."))(event)
        }
    }
    pub unsafe fn aclrtDestroyEvent(&self, event: aclrtEvent) -> aclError {
        unsafe {
            (self
                .aclrtDestroyEvent
                .as_ref()
                .expect("Expected function, got error."))(event)
        }
    }
    pub unsafe fn aclrtRecordEvent(
        &self,
        event: aclrtEvent,
        stream: aclrtStream,
    ) -> aclError {
        unsafe {
            (self
                .aclrtRecordEvent
                .as_ref()
                .expect("Expected function, got error."))(event, stream)
        }
    }
    pub unsafe fn aclrtStreamWaitEvent(
        &self,
        stream: aclrtStream,
        event: aclrtEvent,
    ) -> aclError {
        unsafe {
            (self
                .aclrtStreamWaitEvent
                .as_ref()
                .expect("Expected function, got error."))(stream, event)
        }
    }
    pub unsafe fn aclrtSynchronizeEvent(&self, event: aclrtEvent) -> aclError {
        unsafe {
            (self
                .aclrtSynchronizeEvent
                .as_ref()
                .expect("Expected function, got error."))(event)
        }
    }
    pub unsafe fn aclrtEventElapsedTime(
        &self,
        ms: *mut f32,
        startEvent: aclrtEvent,
        endEvent: aclrtEvent,
    ) -> aclError {
        unsafe {
            (self
                .aclrtEventElapsedTime
                .as_ref()
                .expect("Expected function, got error."))(ms, startEvent, endEvent)
        }
    }
    pub unsafe fn aclrtMalloc(
        &self,
        devPtr: *mut *mut ::std::os::raw::c_void,
        size: usize,
        policy: aclrtMemMallocPolicy,
    ) -> aclError {
        unsafe {
            (self
                .aclrtMalloc
                .as_ref()
                .expect("Expected function, got error."))(devPtr, size, policy)
        }
    }
    pub unsafe fn aclrtFree(&self, devPtr: *mut ::std::os::raw::c_void) -> aclError {
        unsafe {
            (self.aclrtFree.as_ref().expect("Expected function, got error."))(devPtr)
        }
    }
    pub unsafe fn aclrtMallocHost(
        &self,
        hostPtr: *mut *mut ::std::os::raw::c_void,
        size: usize,
    ) -> aclError {
        unsafe {
            (self
                .aclrtMallocHost
                .as_ref()
                .expect("Expected function, got error."))(hostPtr, size)
        }
    }
    pub unsafe fn aclrtFreeHost(
        &self,
        hostPtr: *mut ::std::os::raw::c_void,
    ) -> aclError {
        unsafe {
            (self
                .aclrtFreeHost
                .as_ref()
                .expect("Expected function, got error."))(hostPtr)
        }
    }
    pub unsafe fn aclrtMemcpy(
        &self,
        dst: *mut ::std::os::raw::c_void,
        destMax: usize,
        src: *const ::std::os::raw::c_void,
        count: usize,
        kind: aclrtMemcpyKind,
    ) -> aclError {
        unsafe {
            (self
                .aclrtMemcpy
                .as_ref()
                .expect("Expected function, got error."))(dst, destMax, src, count, kind)
        }
    }
    pub unsafe fn aclrtMemcpyAsync(
        &self,
        dst: *mut ::std::os::raw::c_void,
        destMax: usize,
        src: *const ::std::os::raw::c_void,
        count: usize,
        kind: aclrtMemcpyKind,
        stream: aclrtStream,
    ) -> aclError {
        unsafe {
            (self
                .aclrtMemcpyAsync
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(dst, destMax, src, count, kind, stream)
        }
    }
    pub unsafe fn aclrtGetMemInfo(
        &self,
        attr: aclrtMemAttr,
        free: *mut usize,
        total: *mut usize,
    ) -> aclError {
        unsafe {
            (self
                .aclrtGetMemInfo
                .as_ref()
                .expect("Expected function, got error."))(attr, free, total)
        }
    }
    pub unsafe fn aclrtCtxSetSysParamOpt(
        &self,
        opt: aclSysParamOpt,
        value: i64,
    ) -> aclError {
        unsafe {
            (self
                .aclrtCtxSetSysParamOpt
                .as_ref()
                .expect("Expected function, got error."))(opt, value)
        }
    }
    pub unsafe fn aclrtSetDeviceSatMode(
        &self,
        mode: aclrtFloatOverflowMode,
    ) -> aclError {
        unsafe {
            (self
                .aclrtSetDeviceSatMode
                .as_ref()
                .expect("Expected function, got error."))(mode)
        }
    }
    pub unsafe fn aclrtGetDeviceSatMode(
        &self,
        mode: *mut aclrtFloatOverflowMode,
    ) -> aclError {
        unsafe {
            (self
                .aclrtGetDeviceSatMode
                .as_ref()
                .expect("Expected function, got error."))(mode)
        }
    }
}
impl Runtime {
    pub fn symbols(&self) -> Vec<(&'static str, bool)> {
        vec![
            ("aclInit", self.aclInit.is_ok()),
            ("aclFinalize", self.aclFinalize.is_ok()),
            ("aclGetRecentErrMsg", self.aclGetRecentErrMsg.is_ok()),
            ("aclrtSetDevice", self.aclrtSetDevice.is_ok()),
            ("aclrtResetDevice", self.aclrtResetDevice.is_ok()),
            ("aclrtGetDeviceCount", self.aclrtGetDeviceCount.is_ok()),
            ("aclrtGetSocName", self.aclrtGetSocName.is_ok()),
            ("aclrtGetVersion", self.aclrtGetVersion.is_ok()),
            ("aclsysGetVersionStr", self.aclsysGetVersionStr.is_ok()),
            ("aclrtCreateContext", self.aclrtCreateContext.is_ok()),
            ("aclrtDestroyContext", self.aclrtDestroyContext.is_ok()),
            ("aclrtSetCurrentContext", self.aclrtSetCurrentContext.is_ok()),
            ("aclrtCreateStream", self.aclrtCreateStream.is_ok()),
            ("aclrtDestroyStream", self.aclrtDestroyStream.is_ok()),
            ("aclrtSynchronizeStream", self.aclrtSynchronizeStream.is_ok()),
            ("aclrtCreateEvent", self.aclrtCreateEvent.is_ok()),
            ("aclrtDestroyEvent", self.aclrtDestroyEvent.is_ok()),
            ("aclrtRecordEvent", self.aclrtRecordEvent.is_ok()),
            ("aclrtStreamWaitEvent", self.aclrtStreamWaitEvent.is_ok()),
            ("aclrtSynchronizeEvent", self.aclrtSynchronizeEvent.is_ok()),
            ("aclrtEventElapsedTime", self.aclrtEventElapsedTime.is_ok()),
            ("aclrtMalloc", self.aclrtMalloc.is_ok()),
            ("aclrtFree", self.aclrtFree.is_ok()),
            ("aclrtMallocHost", self.aclrtMallocHost.is_ok()),
            ("aclrtFreeHost", self.aclrtFreeHost.is_ok()),
            ("aclrtMemcpy", self.aclrtMemcpy.is_ok()),
            ("aclrtMemcpyAsync", self.aclrtMemcpyAsync.is_ok()),
            ("aclrtGetMemInfo", self.aclrtGetMemInfo.is_ok()),
            ("aclrtCtxSetSysParamOpt", self.aclrtCtxSetSysParamOpt.is_ok()),
            ("aclrtSetDeviceSatMode", self.aclrtSetDeviceSatMode.is_ok()),
            ("aclrtGetDeviceSatMode", self.aclrtGetDeviceSatMode.is_ok()),
        ]
    }
}
}

/// Tensors, arrays and executors.
pub mod objects {
use super::types::*;

pub struct Objects {
    __library: ::libloading::Library,
    pub aclCreateTensor: Result<
        unsafe extern "C" fn(
            viewDims: *const i64,
            viewDimsNum: u64,
            dataType: aclDataType,
            stride: *const i64,
            offset: i64,
            format: aclFormat,
            storageDims: *const i64,
            storageDimsNum: u64,
            tensorData: *mut ::std::os::raw::c_void,
        ) -> *mut aclTensor,
        ::libloading::Error,
    >,
    pub aclDestroyTensor: Result<
        unsafe extern "C" fn(tensor: *const aclTensor) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclCreateIntArray: Result<
        unsafe extern "C" fn(value: *const i64, size: u64) -> *mut aclIntArray,
        ::libloading::Error,
    >,
    pub aclDestroyIntArray: Result<
        unsafe extern "C" fn(array: *const aclIntArray) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclCreateTensorList: Result<
        unsafe extern "C" fn(
            value: *const *const aclTensor,
            size: u64,
        ) -> *mut aclTensorList,
        ::libloading::Error,
    >,
    pub aclDestroyTensorList: Result<
        unsafe extern "C" fn(array: *const aclTensorList) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclSetAclOpExecutorRepeatable: Result<
        unsafe extern "C" fn(executor: *mut aclOpExecutor) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclDestroyAclOpExecutor: Result<
        unsafe extern "C" fn(executor: *mut aclOpExecutor) -> aclnnStatus,
        ::libloading::Error,
    >,
}
impl Objects {
    pub unsafe fn new<P>(path: P) -> Result<Self, ::libloading::Error>
    where
        P: AsRef<::std::ffi::OsStr>,
    {
        let path = path.as_ref();
        let library = unsafe { ::libloading::Library::new(path) }?;
        unsafe { Self::from_library(library) }
    }
    pub unsafe fn from_library<L>(library: L) -> Result<Self, ::libloading::Error>
    where
        L: Into<::libloading::Library>,
    {
        let __library = library.into();
        let aclCreateTensor = unsafe { __library.get(b"aclCreateTensor\0") }
            .map(|sym| *sym);
        let aclDestroyTensor = unsafe { __library.get(b"aclDestroyTensor\0") }
            .map(|sym| *sym);
        let aclCreateIntArray = unsafe { __library.get(b"aclCreateIntArray\0") }
            .map(|sym| *sym);
        let aclDestroyIntArray = unsafe { __library.get(b"aclDestroyIntArray\0") }
            .map(|sym| *sym);
        let aclCreateTensorList = unsafe { __library.get(b"aclCreateTensorList\0") }
            .map(|sym| *sym);
        let aclDestroyTensorList = unsafe { __library.get(b"aclDestroyTensorList\0") }
            .map(|sym| *sym);
        let aclSetAclOpExecutorRepeatable = unsafe {
            __library.get(b"aclSetAclOpExecutorRepeatable\0")
        }
            .map(|sym| *sym);
        let aclDestroyAclOpExecutor = unsafe {
            __library.get(b"aclDestroyAclOpExecutor\0")
        }
            .map(|sym| *sym);
        Ok(Objects {
            __library,
            aclCreateTensor,
            aclDestroyTensor,
            aclCreateIntArray,
            aclDestroyIntArray,
            aclCreateTensorList,
            aclDestroyTensorList,
            aclSetAclOpExecutorRepeatable,
            aclDestroyAclOpExecutor,
        })
    }
    pub unsafe fn aclCreateTensor(
        &self,
        viewDims: *const i64,
        viewDimsNum: u64,
        dataType: aclDataType,
        stride: *const i64,
        offset: i64,
        format: aclFormat,
        storageDims: *const i64,
        storageDimsNum: u64,
        tensorData: *mut ::std::os::raw::c_void,
    ) -> *mut aclTensor {
        unsafe {
            (self
                .aclCreateTensor
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(
                viewDims,
                viewDimsNum,
                dataType,
                stride,
                offset,
                format,
                storageDims,
                storageDimsNum,
                tensorData,
            )
        }
    }
    pub unsafe fn aclDestroyTensor(&self, tensor: *const aclTensor) -> aclnnStatus {
        unsafe {
            (self
                .aclDestroyTensor
                .as_ref()
                .expect("Expected function, got error."))(tensor)
        }
    }
    pub unsafe fn aclCreateIntArray(
        &self,
        value: *const i64,
        size: u64,
    ) -> *mut aclIntArray {
        unsafe {
            (self
                .aclCreateIntArray
                .as_ref()
                .expect("Expected function, got error."))(value, size)
        }
    }
    pub unsafe fn aclDestroyIntArray(&self, array: *const aclIntArray) -> aclnnStatus {
        unsafe {
            (self
                .aclDestroyIntArray
                .as_ref()
                .expect("Expected function, got error."))(array)
        }
    }
    pub unsafe fn aclCreateTensorList(
        &self,
        value: *const *const aclTensor,
        size: u64,
    ) -> *mut aclTensorList {
        unsafe {
            (self
                .aclCreateTensorList
                .as_ref()
                .expect("Expected function, got error."))(value, size)
        }
    }
    pub unsafe fn aclDestroyTensorList(
        &self,
        array: *const aclTensorList,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclDestroyTensorList
                .as_ref()
                .expect("Expected function, got error."))(array)
        }
    }
    pub unsafe fn aclSetAclOpExecutorRepeatable(
        &self,
        executor: *mut aclOpExecutor,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclSetAclOpExecutorRepeatable
                .as_ref()
                .expect("Expected function, got error."))(executor)
        }
    }
    pub unsafe fn aclDestroyAclOpExecutor(
        &self,
        executor: *mut aclOpExecutor,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclDestroyAclOpExecutor
                .as_ref()
                .expect("Expected function, got error."))(executor)
        }
    }
}
impl Objects {
    pub fn symbols(&self) -> Vec<(&'static str, bool)> {
        vec![
            ("aclCreateTensor", self.aclCreateTensor.is_ok()),
            ("aclDestroyTensor", self.aclDestroyTensor.is_ok()),
            ("aclCreateIntArray", self.aclCreateIntArray.is_ok()),
            ("aclDestroyIntArray", self.aclDestroyIntArray.is_ok()),
            ("aclCreateTensorList", self.aclCreateTensorList.is_ok()),
            ("aclDestroyTensorList", self.aclDestroyTensorList.is_ok()),
            ("aclSetAclOpExecutorRepeatable", self.aclSetAclOpExecutorRepeatable.is_ok()),
            ("aclDestroyAclOpExecutor", self.aclDestroyAclOpExecutor.is_ok()),
        ]
    }
}
}

/// Products, quantisation and layouts.
pub mod operators {
use super::types::*;

pub struct Operators {
    __library: ::libloading::Library,
    pub aclnnQuantMatmulV3GetWorkspaceSize: Result<
        unsafe extern "C" fn(
            x1: *const aclTensor,
            x2: *const aclTensor,
            scale: *const aclTensor,
            offset: *const aclTensor,
            bias: *const aclTensor,
            transposeX1: bool,
            transposeX2: bool,
            out: *const aclTensor,
            workspaceSize: *mut u64,
            executor: *mut *mut aclOpExecutor,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnQuantMatmulV3: Result<
        unsafe extern "C" fn(
            workspace: *mut ::std::os::raw::c_void,
            workspaceSize: u64,
            executor: *mut aclOpExecutor,
            stream: aclrtStream,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnQuantMatmulV4GetWorkspaceSize: Result<
        unsafe extern "C" fn(
            x1: *const aclTensor,
            x2: *const aclTensor,
            scale: *const aclTensor,
            offset: *const aclTensor,
            pertokenScaleOptional: *const aclTensor,
            bias: *const aclTensor,
            transposeX1: bool,
            transposeX2: bool,
            out: *const aclTensor,
            workspaceSize: *mut u64,
            executor: *mut *mut aclOpExecutor,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnQuantMatmulV4: Result<
        unsafe extern "C" fn(
            workspace: *mut ::std::os::raw::c_void,
            workspaceSize: u64,
            executor: *mut aclOpExecutor,
            stream: aclrtStream,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnQuantMatmulV5GetWorkspaceSize: Result<
        unsafe extern "C" fn(
            x1: *const aclTensor,
            x2: *const aclTensor,
            x1Scale: *const aclTensor,
            x2Scale: *const aclTensor,
            yScale: *const aclTensor,
            x1Offset: *const aclTensor,
            x2Offset: *const aclTensor,
            yOffset: *const aclTensor,
            bias: *const aclTensor,
            transposeX1: bool,
            transposeX2: bool,
            groupSize: i64,
            out: *mut aclTensor,
            workspaceSize: *mut u64,
            executor: *mut *mut aclOpExecutor,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnQuantMatmulV5: Result<
        unsafe extern "C" fn(
            workspace: *mut ::std::os::raw::c_void,
            workspaceSize: u64,
            executor: *mut aclOpExecutor,
            stream: aclrtStream,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnQuantMatmulWeightNzGetWorkspaceSize: Result<
        unsafe extern "C" fn(
            x1: *const aclTensor,
            x2: *const aclTensor,
            x1Scale: *const aclTensor,
            x2Scale: *const aclTensor,
            yScale: *const aclTensor,
            x1Offset: *const aclTensor,
            x2Offset: *const aclTensor,
            yOffset: *const aclTensor,
            bias: *const aclTensor,
            transposeX1: bool,
            transposeX2: bool,
            groupSize: i64,
            out: *mut aclTensor,
            workspaceSize: *mut u64,
            executor: *mut *mut aclOpExecutor,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnQuantMatmulWeightNz: Result<
        unsafe extern "C" fn(
            workspace: *mut ::std::os::raw::c_void,
            workspaceSize: u64,
            executor: *mut aclOpExecutor,
            stream: aclrtStream,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnTransQuantParam: Result<
        unsafe extern "C" fn(
            scaleArray: *const f32,
            scaleSize: u64,
            offsetArray: *const f32,
            offsetSize: u64,
            quantParam: *mut *mut u64,
            quantParamSize: *mut u64,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnTransQuantParamV2GetWorkspaceSize: Result<
        unsafe extern "C" fn(
            scale: *const aclTensor,
            offset: *const aclTensor,
            out: *const aclTensor,
            workspaceSize: *mut u64,
            executor: *mut *mut aclOpExecutor,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnTransQuantParamV2: Result<
        unsafe extern "C" fn(
            workspace: *mut ::std::os::raw::c_void,
            workspaceSize: u64,
            executor: *mut aclOpExecutor,
            stream: aclrtStream,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnTransQuantParamV3GetWorkspaceSize: Result<
        unsafe extern "C" fn(
            scale: *const aclTensor,
            offset: *const aclTensor,
            roundMode: i64,
            out: *const aclTensor,
            workspaceSize: *mut u64,
            executor: *mut *mut aclOpExecutor,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnTransQuantParamV3: Result<
        unsafe extern "C" fn(
            workspace: *mut ::std::os::raw::c_void,
            workspaceSize: u64,
            executor: *mut aclOpExecutor,
            stream: aclrtStream,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnDynamicQuantGetWorkspaceSize: Result<
        unsafe extern "C" fn(
            x: *const aclTensor,
            smoothScalesOptional: *const aclTensor,
            yOut: *const aclTensor,
            scaleOut: *const aclTensor,
            workspaceSize: *mut u64,
            executor: *mut *mut aclOpExecutor,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnDynamicQuant: Result<
        unsafe extern "C" fn(
            workspace: *mut ::std::os::raw::c_void,
            workspaceSize: u64,
            executor: *mut aclOpExecutor,
            stream: aclrtStream,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnDynamicQuantV2GetWorkspaceSize: Result<
        unsafe extern "C" fn(
            x: *const aclTensor,
            smoothScalesOptional: *const aclTensor,
            groupIndexOptional: *const aclTensor,
            dstType: i64,
            yOut: *const aclTensor,
            scaleOut: *const aclTensor,
            offsetOut: *const aclTensor,
            workspaceSize: *mut u64,
            executor: *mut *mut aclOpExecutor,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnDynamicQuantV2: Result<
        unsafe extern "C" fn(
            workspace: *mut ::std::os::raw::c_void,
            workspaceSize: u64,
            executor: *mut aclOpExecutor,
            stream: aclrtStream,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnDynamicQuantV3GetWorkspaceSize: Result<
        unsafe extern "C" fn(
            x: *const aclTensor,
            smoothScalesOptional: *const aclTensor,
            groupIndexOptional: *const aclTensor,
            dstType: i64,
            isSymmetrical: bool,
            quantMode: *const ::std::os::raw::c_char,
            yOut: *const aclTensor,
            scaleOut: *const aclTensor,
            offsetOut: *const aclTensor,
            workspaceSize: *mut u64,
            executor: *mut *mut aclOpExecutor,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnDynamicQuantV3: Result<
        unsafe extern "C" fn(
            workspace: *mut ::std::os::raw::c_void,
            workspaceSize: u64,
            executor: *mut aclOpExecutor,
            stream: aclrtStream,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnDynamicQuantV4GetWorkspaceSize: Result<
        unsafe extern "C" fn(
            x: *const aclTensor,
            smoothScalesOptional: *const aclTensor,
            groupIndexOptional: *const aclTensor,
            dstType: i64,
            isSymmetrical: bool,
            quantMode: *const ::std::os::raw::c_char,
            dstTypeMax: f32,
            yOut: *const aclTensor,
            scaleOut: *const aclTensor,
            offsetOut: *const aclTensor,
            workspaceSize: *mut u64,
            executor: *mut *mut aclOpExecutor,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnDynamicQuantV4: Result<
        unsafe extern "C" fn(
            workspace: *mut ::std::os::raw::c_void,
            workspaceSize: u64,
            executor: *mut aclOpExecutor,
            stream: aclrtStream,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnAscendQuantV3GetWorkspaceSize: Result<
        unsafe extern "C" fn(
            x: *const aclTensor,
            scale: *const aclTensor,
            offset: *const aclTensor,
            sqrtMode: bool,
            roundMode: *const ::std::os::raw::c_char,
            dstType: i32,
            axis: i32,
            y: *const aclTensor,
            workspaceSize: *mut u64,
            executor: *mut *mut aclOpExecutor,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnAscendQuantV3: Result<
        unsafe extern "C" fn(
            workspace: *mut ::std::os::raw::c_void,
            workspaceSize: u64,
            executor: *mut aclOpExecutor,
            stream: aclrtStream,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnAscendAntiQuantGetWorkspaceSize: Result<
        unsafe extern "C" fn(
            x: *const aclTensor,
            scale: *const aclTensor,
            offset: *const aclTensor,
            dstType: i64,
            sqrtMode: bool,
            y: *const aclTensor,
            workspaceSize: *mut u64,
            executor: *mut *mut aclOpExecutor,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnAscendAntiQuant: Result<
        unsafe extern "C" fn(
            workspace: *mut ::std::os::raw::c_void,
            workspaceSize: u64,
            executor: *mut aclOpExecutor,
            stream: aclrtStream,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnWeightQuantBatchMatmulV2GetWorkspaceSize: Result<
        unsafe extern "C" fn(
            x: *const aclTensor,
            weight: *const aclTensor,
            antiquantScale: *const aclTensor,
            antiquantOffsetOptional: *const aclTensor,
            quantScaleOptional: *const aclTensor,
            quantOffsetOptional: *const aclTensor,
            biasOptional: *const aclTensor,
            antiquantGroupSize: ::std::os::raw::c_int,
            y: *const aclTensor,
            workspaceSize: *mut u64,
            executor: *mut *mut aclOpExecutor,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnWeightQuantBatchMatmulV2: Result<
        unsafe extern "C" fn(
            workspace: *mut ::std::os::raw::c_void,
            workspaceSize: u64,
            executor: *mut aclOpExecutor,
            stream: aclrtStream,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnWeightQuantBatchMatmulV3GetWorkspaceSize: Result<
        unsafe extern "C" fn(
            x: *const aclTensor,
            weight: *const aclTensor,
            antiquantScale: *const aclTensor,
            antiquantOffsetOptional: *const aclTensor,
            quantScaleOptional: *const aclTensor,
            quantOffsetOptional: *const aclTensor,
            biasOptional: *const aclTensor,
            antiquantGroupSize: ::std::os::raw::c_int,
            innerPrecise: ::std::os::raw::c_int,
            y: *const aclTensor,
            workspaceSize: *mut u64,
            executor: *mut *mut aclOpExecutor,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnWeightQuantBatchMatmulV3: Result<
        unsafe extern "C" fn(
            workspace: *mut ::std::os::raw::c_void,
            workspaceSize: u64,
            executor: *mut aclOpExecutor,
            stream: aclrtStream,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnWeightQuantBatchMatmulNzGetWorkspaceSize: Result<
        unsafe extern "C" fn(
            x: *const aclTensor,
            weight: *const aclTensor,
            antiquantScale: *const aclTensor,
            antiquantOffsetOptional: *const aclTensor,
            quantScaleOptional: *const aclTensor,
            quantOffsetOptional: *const aclTensor,
            biasOptional: *const aclTensor,
            antiquantGroupSize: ::std::os::raw::c_int,
            y: *const aclTensor,
            workspaceSize: *mut u64,
            executor: *mut *mut aclOpExecutor,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnWeightQuantBatchMatmulNz: Result<
        unsafe extern "C" fn(
            workspace: *mut ::std::os::raw::c_void,
            workspaceSize: u64,
            executor: *mut aclOpExecutor,
            stream: aclrtStream,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnMmGetWorkspaceSize: Result<
        unsafe extern "C" fn(
            self_: *const aclTensor,
            mat2: *const aclTensor,
            out: *mut aclTensor,
            cubeMathType: i8,
            workspaceSize: *mut u64,
            executor: *mut *mut aclOpExecutor,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnMm: Result<
        unsafe extern "C" fn(
            workspace: *mut ::std::os::raw::c_void,
            workspaceSize: u64,
            executor: *mut aclOpExecutor,
            stream: aclrtStream,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnConvertWeightToINT4PackGetWorkspaceSize: Result<
        unsafe extern "C" fn(
            weight: *const aclTensor,
            weightInt4Pack: *mut aclTensor,
            workspaceSize: *mut u64,
            executor: *mut *mut aclOpExecutor,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnConvertWeightToINT4Pack: Result<
        unsafe extern "C" fn(
            workspace: *mut ::std::os::raw::c_void,
            workspaceSize: u64,
            executor: *mut aclOpExecutor,
            stream: aclrtStream,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnFlatQuantGetWorkspaceSize: Result<
        unsafe extern "C" fn(
            x: *const aclTensor,
            kroneckerP1: *const aclTensor,
            kroneckerP2: *const aclTensor,
            clipRatio: f64,
            out: *mut aclTensor,
            quantScale: *mut aclTensor,
            workspaceSize: *mut u64,
            executor: *mut *mut aclOpExecutor,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnFlatQuant: Result<
        unsafe extern "C" fn(
            workspace: *mut ::std::os::raw::c_void,
            workspaceSize: u64,
            executor: *mut aclOpExecutor,
            stream: aclrtStream,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
}
impl Operators {
    pub unsafe fn new<P>(path: P) -> Result<Self, ::libloading::Error>
    where
        P: AsRef<::std::ffi::OsStr>,
    {
        let path = path.as_ref();
        let library = unsafe { ::libloading::Library::new(path) }?;
        unsafe { Self::from_library(library) }
    }
    pub unsafe fn from_library<L>(library: L) -> Result<Self, ::libloading::Error>
    where
        L: Into<::libloading::Library>,
    {
        let __library = library.into();
        let aclnnQuantMatmulV3GetWorkspaceSize = unsafe {
            __library.get(b"aclnnQuantMatmulV3GetWorkspaceSize\0")
        }
            .map(|sym| *sym);
        let aclnnQuantMatmulV3 = unsafe { __library.get(b"aclnnQuantMatmulV3\0") }
            .map(|sym| *sym);
        let aclnnQuantMatmulV4GetWorkspaceSize = unsafe {
            __library.get(b"aclnnQuantMatmulV4GetWorkspaceSize\0")
        }
            .map(|sym| *sym);
        let aclnnQuantMatmulV4 = unsafe { __library.get(b"aclnnQuantMatmulV4\0") }
            .map(|sym| *sym);
        let aclnnQuantMatmulV5GetWorkspaceSize = unsafe {
            __library.get(b"aclnnQuantMatmulV5GetWorkspaceSize\0")
        }
            .map(|sym| *sym);
        let aclnnQuantMatmulV5 = unsafe { __library.get(b"aclnnQuantMatmulV5\0") }
            .map(|sym| *sym);
        let aclnnQuantMatmulWeightNzGetWorkspaceSize = unsafe {
            __library.get(b"aclnnQuantMatmulWeightNzGetWorkspaceSize\0")
        }
            .map(|sym| *sym);
        let aclnnQuantMatmulWeightNz = unsafe {
            __library.get(b"aclnnQuantMatmulWeightNz\0")
        }
            .map(|sym| *sym);
        let aclnnTransQuantParam = unsafe { __library.get(b"aclnnTransQuantParam\0") }
            .map(|sym| *sym);
        let aclnnTransQuantParamV2GetWorkspaceSize = unsafe {
            __library.get(b"aclnnTransQuantParamV2GetWorkspaceSize\0")
        }
            .map(|sym| *sym);
        let aclnnTransQuantParamV2 = unsafe {
            __library.get(b"aclnnTransQuantParamV2\0")
        }
            .map(|sym| *sym);
        let aclnnTransQuantParamV3GetWorkspaceSize = unsafe {
            __library.get(b"aclnnTransQuantParamV3GetWorkspaceSize\0")
        }
            .map(|sym| *sym);
        let aclnnTransQuantParamV3 = unsafe {
            __library.get(b"aclnnTransQuantParamV3\0")
        }
            .map(|sym| *sym);
        let aclnnDynamicQuantGetWorkspaceSize = unsafe {
            __library.get(b"aclnnDynamicQuantGetWorkspaceSize\0")
        }
            .map(|sym| *sym);
        let aclnnDynamicQuant = unsafe { __library.get(b"aclnnDynamicQuant\0") }
            .map(|sym| *sym);
        let aclnnDynamicQuantV2GetWorkspaceSize = unsafe {
            __library.get(b"aclnnDynamicQuantV2GetWorkspaceSize\0")
        }
            .map(|sym| *sym);
        let aclnnDynamicQuantV2 = unsafe { __library.get(b"aclnnDynamicQuantV2\0") }
            .map(|sym| *sym);
        let aclnnDynamicQuantV3GetWorkspaceSize = unsafe {
            __library.get(b"aclnnDynamicQuantV3GetWorkspaceSize\0")
        }
            .map(|sym| *sym);
        let aclnnDynamicQuantV3 = unsafe { __library.get(b"aclnnDynamicQuantV3\0") }
            .map(|sym| *sym);
        let aclnnDynamicQuantV4GetWorkspaceSize = unsafe {
            __library.get(b"aclnnDynamicQuantV4GetWorkspaceSize\0")
        }
            .map(|sym| *sym);
        let aclnnDynamicQuantV4 = unsafe { __library.get(b"aclnnDynamicQuantV4\0") }
            .map(|sym| *sym);
        let aclnnAscendQuantV3GetWorkspaceSize = unsafe {
            __library.get(b"aclnnAscendQuantV3GetWorkspaceSize\0")
        }
            .map(|sym| *sym);
        let aclnnAscendQuantV3 = unsafe { __library.get(b"aclnnAscendQuantV3\0") }
            .map(|sym| *sym);
        let aclnnAscendAntiQuantGetWorkspaceSize = unsafe {
            __library.get(b"aclnnAscendAntiQuantGetWorkspaceSize\0")
        }
            .map(|sym| *sym);
        let aclnnAscendAntiQuant = unsafe { __library.get(b"aclnnAscendAntiQuant\0") }
            .map(|sym| *sym);
        let aclnnWeightQuantBatchMatmulV2GetWorkspaceSize = unsafe {
            __library.get(b"aclnnWeightQuantBatchMatmulV2GetWorkspaceSize\0")
        }
            .map(|sym| *sym);
        let aclnnWeightQuantBatchMatmulV2 = unsafe {
            __library.get(b"aclnnWeightQuantBatchMatmulV2\0")
        }
            .map(|sym| *sym);
        let aclnnWeightQuantBatchMatmulV3GetWorkspaceSize = unsafe {
            __library.get(b"aclnnWeightQuantBatchMatmulV3GetWorkspaceSize\0")
        }
            .map(|sym| *sym);
        let aclnnWeightQuantBatchMatmulV3 = unsafe {
            __library.get(b"aclnnWeightQuantBatchMatmulV3\0")
        }
            .map(|sym| *sym);
        let aclnnWeightQuantBatchMatmulNzGetWorkspaceSize = unsafe {
            __library.get(b"aclnnWeightQuantBatchMatmulNzGetWorkspaceSize\0")
        }
            .map(|sym| *sym);
        let aclnnWeightQuantBatchMatmulNz = unsafe {
            __library.get(b"aclnnWeightQuantBatchMatmulNz\0")
        }
            .map(|sym| *sym);
        let aclnnMmGetWorkspaceSize = unsafe {
            __library.get(b"aclnnMmGetWorkspaceSize\0")
        }
            .map(|sym| *sym);
        let aclnnMm = unsafe { __library.get(b"aclnnMm\0") }.map(|sym| *sym);
        let aclnnConvertWeightToINT4PackGetWorkspaceSize = unsafe {
            __library.get(b"aclnnConvertWeightToINT4PackGetWorkspaceSize\0")
        }
            .map(|sym| *sym);
        let aclnnConvertWeightToINT4Pack = unsafe {
            __library.get(b"aclnnConvertWeightToINT4Pack\0")
        }
            .map(|sym| *sym);
        let aclnnFlatQuantGetWorkspaceSize = unsafe {
            __library.get(b"aclnnFlatQuantGetWorkspaceSize\0")
        }
            .map(|sym| *sym);
        let aclnnFlatQuant = unsafe { __library.get(b"aclnnFlatQuant\0") }
            .map(|sym| *sym);
        Ok(Operators {
            __library,
            aclnnQuantMatmulV3GetWorkspaceSize,
            aclnnQuantMatmulV3,
            aclnnQuantMatmulV4GetWorkspaceSize,
            aclnnQuantMatmulV4,
            aclnnQuantMatmulV5GetWorkspaceSize,
            aclnnQuantMatmulV5,
            aclnnQuantMatmulWeightNzGetWorkspaceSize,
            aclnnQuantMatmulWeightNz,
            aclnnTransQuantParam,
            aclnnTransQuantParamV2GetWorkspaceSize,
            aclnnTransQuantParamV2,
            aclnnTransQuantParamV3GetWorkspaceSize,
            aclnnTransQuantParamV3,
            aclnnDynamicQuantGetWorkspaceSize,
            aclnnDynamicQuant,
            aclnnDynamicQuantV2GetWorkspaceSize,
            aclnnDynamicQuantV2,
            aclnnDynamicQuantV3GetWorkspaceSize,
            aclnnDynamicQuantV3,
            aclnnDynamicQuantV4GetWorkspaceSize,
            aclnnDynamicQuantV4,
            aclnnAscendQuantV3GetWorkspaceSize,
            aclnnAscendQuantV3,
            aclnnAscendAntiQuantGetWorkspaceSize,
            aclnnAscendAntiQuant,
            aclnnWeightQuantBatchMatmulV2GetWorkspaceSize,
            aclnnWeightQuantBatchMatmulV2,
            aclnnWeightQuantBatchMatmulV3GetWorkspaceSize,
            aclnnWeightQuantBatchMatmulV3,
            aclnnWeightQuantBatchMatmulNzGetWorkspaceSize,
            aclnnWeightQuantBatchMatmulNz,
            aclnnMmGetWorkspaceSize,
            aclnnMm,
            aclnnConvertWeightToINT4PackGetWorkspaceSize,
            aclnnConvertWeightToINT4Pack,
            aclnnFlatQuantGetWorkspaceSize,
            aclnnFlatQuant,
        })
    }
    pub unsafe fn aclnnQuantMatmulV3GetWorkspaceSize(
        &self,
        x1: *const aclTensor,
        x2: *const aclTensor,
        scale: *const aclTensor,
        offset: *const aclTensor,
        bias: *const aclTensor,
        transposeX1: bool,
        transposeX2: bool,
        out: *const aclTensor,
        workspaceSize: *mut u64,
        executor: *mut *mut aclOpExecutor,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnQuantMatmulV3GetWorkspaceSize
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(
                x1,
                x2,
                scale,
                offset,
                bias,
                transposeX1,
                transposeX2,
                out,
                workspaceSize,
                executor,
            )
        }
    }
    pub unsafe fn aclnnQuantMatmulV3(
        &self,
        workspace: *mut ::std::os::raw::c_void,
        workspaceSize: u64,
        executor: *mut aclOpExecutor,
        stream: aclrtStream,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnQuantMatmulV3
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(workspace, workspaceSize, executor, stream)
        }
    }
    pub unsafe fn aclnnQuantMatmulV4GetWorkspaceSize(
        &self,
        x1: *const aclTensor,
        x2: *const aclTensor,
        scale: *const aclTensor,
        offset: *const aclTensor,
        pertokenScaleOptional: *const aclTensor,
        bias: *const aclTensor,
        transposeX1: bool,
        transposeX2: bool,
        out: *const aclTensor,
        workspaceSize: *mut u64,
        executor: *mut *mut aclOpExecutor,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnQuantMatmulV4GetWorkspaceSize
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(
                x1,
                x2,
                scale,
                offset,
                pertokenScaleOptional,
                bias,
                transposeX1,
                transposeX2,
                out,
                workspaceSize,
                executor,
            )
        }
    }
    pub unsafe fn aclnnQuantMatmulV4(
        &self,
        workspace: *mut ::std::os::raw::c_void,
        workspaceSize: u64,
        executor: *mut aclOpExecutor,
        stream: aclrtStream,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnQuantMatmulV4
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(workspace, workspaceSize, executor, stream)
        }
    }
    pub unsafe fn aclnnQuantMatmulV5GetWorkspaceSize(
        &self,
        x1: *const aclTensor,
        x2: *const aclTensor,
        x1Scale: *const aclTensor,
        x2Scale: *const aclTensor,
        yScale: *const aclTensor,
        x1Offset: *const aclTensor,
        x2Offset: *const aclTensor,
        yOffset: *const aclTensor,
        bias: *const aclTensor,
        transposeX1: bool,
        transposeX2: bool,
        groupSize: i64,
        out: *mut aclTensor,
        workspaceSize: *mut u64,
        executor: *mut *mut aclOpExecutor,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnQuantMatmulV5GetWorkspaceSize
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(
                x1,
                x2,
                x1Scale,
                x2Scale,
                yScale,
                x1Offset,
                x2Offset,
                yOffset,
                bias,
                transposeX1,
                transposeX2,
                groupSize,
                out,
                workspaceSize,
                executor,
            )
        }
    }
    pub unsafe fn aclnnQuantMatmulV5(
        &self,
        workspace: *mut ::std::os::raw::c_void,
        workspaceSize: u64,
        executor: *mut aclOpExecutor,
        stream: aclrtStream,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnQuantMatmulV5
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(workspace, workspaceSize, executor, stream)
        }
    }
    pub unsafe fn aclnnQuantMatmulWeightNzGetWorkspaceSize(
        &self,
        x1: *const aclTensor,
        x2: *const aclTensor,
        x1Scale: *const aclTensor,
        x2Scale: *const aclTensor,
        yScale: *const aclTensor,
        x1Offset: *const aclTensor,
        x2Offset: *const aclTensor,
        yOffset: *const aclTensor,
        bias: *const aclTensor,
        transposeX1: bool,
        transposeX2: bool,
        groupSize: i64,
        out: *mut aclTensor,
        workspaceSize: *mut u64,
        executor: *mut *mut aclOpExecutor,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnQuantMatmulWeightNzGetWorkspaceSize
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(
                x1,
                x2,
                x1Scale,
                x2Scale,
                yScale,
                x1Offset,
                x2Offset,
                yOffset,
                bias,
                transposeX1,
                transposeX2,
                groupSize,
                out,
                workspaceSize,
                executor,
            )
        }
    }
    pub unsafe fn aclnnQuantMatmulWeightNz(
        &self,
        workspace: *mut ::std::os::raw::c_void,
        workspaceSize: u64,
        executor: *mut aclOpExecutor,
        stream: aclrtStream,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnQuantMatmulWeightNz
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(workspace, workspaceSize, executor, stream)
        }
    }
    pub unsafe fn aclnnTransQuantParam(
        &self,
        scaleArray: *const f32,
        scaleSize: u64,
        offsetArray: *const f32,
        offsetSize: u64,
        quantParam: *mut *mut u64,
        quantParamSize: *mut u64,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnTransQuantParam
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(
                scaleArray,
                scaleSize,
                offsetArray,
                offsetSize,
                quantParam,
                quantParamSize,
            )
        }
    }
    pub unsafe fn aclnnTransQuantParamV2GetWorkspaceSize(
        &self,
        scale: *const aclTensor,
        offset: *const aclTensor,
        out: *const aclTensor,
        workspaceSize: *mut u64,
        executor: *mut *mut aclOpExecutor,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnTransQuantParamV2GetWorkspaceSize
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(scale, offset, out, workspaceSize, executor)
        }
    }
    pub unsafe fn aclnnTransQuantParamV2(
        &self,
        workspace: *mut ::std::os::raw::c_void,
        workspaceSize: u64,
        executor: *mut aclOpExecutor,
        stream: aclrtStream,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnTransQuantParamV2
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(workspace, workspaceSize, executor, stream)
        }
    }
    pub unsafe fn aclnnTransQuantParamV3GetWorkspaceSize(
        &self,
        scale: *const aclTensor,
        offset: *const aclTensor,
        roundMode: i64,
        out: *const aclTensor,
        workspaceSize: *mut u64,
        executor: *mut *mut aclOpExecutor,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnTransQuantParamV3GetWorkspaceSize
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(scale, offset, roundMode, out, workspaceSize, executor)
        }
    }
    pub unsafe fn aclnnTransQuantParamV3(
        &self,
        workspace: *mut ::std::os::raw::c_void,
        workspaceSize: u64,
        executor: *mut aclOpExecutor,
        stream: aclrtStream,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnTransQuantParamV3
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(workspace, workspaceSize, executor, stream)
        }
    }
    pub unsafe fn aclnnDynamicQuantGetWorkspaceSize(
        &self,
        x: *const aclTensor,
        smoothScalesOptional: *const aclTensor,
        yOut: *const aclTensor,
        scaleOut: *const aclTensor,
        workspaceSize: *mut u64,
        executor: *mut *mut aclOpExecutor,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnDynamicQuantGetWorkspaceSize
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(x, smoothScalesOptional, yOut, scaleOut, workspaceSize, executor)
        }
    }
    pub unsafe fn aclnnDynamicQuant(
        &self,
        workspace: *mut ::std::os::raw::c_void,
        workspaceSize: u64,
        executor: *mut aclOpExecutor,
        stream: aclrtStream,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnDynamicQuant
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(workspace, workspaceSize, executor, stream)
        }
    }
    pub unsafe fn aclnnDynamicQuantV2GetWorkspaceSize(
        &self,
        x: *const aclTensor,
        smoothScalesOptional: *const aclTensor,
        groupIndexOptional: *const aclTensor,
        dstType: i64,
        yOut: *const aclTensor,
        scaleOut: *const aclTensor,
        offsetOut: *const aclTensor,
        workspaceSize: *mut u64,
        executor: *mut *mut aclOpExecutor,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnDynamicQuantV2GetWorkspaceSize
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(
                x,
                smoothScalesOptional,
                groupIndexOptional,
                dstType,
                yOut,
                scaleOut,
                offsetOut,
                workspaceSize,
                executor,
            )
        }
    }
    pub unsafe fn aclnnDynamicQuantV2(
        &self,
        workspace: *mut ::std::os::raw::c_void,
        workspaceSize: u64,
        executor: *mut aclOpExecutor,
        stream: aclrtStream,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnDynamicQuantV2
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(workspace, workspaceSize, executor, stream)
        }
    }
    pub unsafe fn aclnnDynamicQuantV3GetWorkspaceSize(
        &self,
        x: *const aclTensor,
        smoothScalesOptional: *const aclTensor,
        groupIndexOptional: *const aclTensor,
        dstType: i64,
        isSymmetrical: bool,
        quantMode: *const ::std::os::raw::c_char,
        yOut: *const aclTensor,
        scaleOut: *const aclTensor,
        offsetOut: *const aclTensor,
        workspaceSize: *mut u64,
        executor: *mut *mut aclOpExecutor,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnDynamicQuantV3GetWorkspaceSize
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(
                x,
                smoothScalesOptional,
                groupIndexOptional,
                dstType,
                isSymmetrical,
                quantMode,
                yOut,
                scaleOut,
                offsetOut,
                workspaceSize,
                executor,
            )
        }
    }
    pub unsafe fn aclnnDynamicQuantV3(
        &self,
        workspace: *mut ::std::os::raw::c_void,
        workspaceSize: u64,
        executor: *mut aclOpExecutor,
        stream: aclrtStream,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnDynamicQuantV3
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(workspace, workspaceSize, executor, stream)
        }
    }
    pub unsafe fn aclnnDynamicQuantV4GetWorkspaceSize(
        &self,
        x: *const aclTensor,
        smoothScalesOptional: *const aclTensor,
        groupIndexOptional: *const aclTensor,
        dstType: i64,
        isSymmetrical: bool,
        quantMode: *const ::std::os::raw::c_char,
        dstTypeMax: f32,
        yOut: *const aclTensor,
        scaleOut: *const aclTensor,
        offsetOut: *const aclTensor,
        workspaceSize: *mut u64,
        executor: *mut *mut aclOpExecutor,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnDynamicQuantV4GetWorkspaceSize
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(
                x,
                smoothScalesOptional,
                groupIndexOptional,
                dstType,
                isSymmetrical,
                quantMode,
                dstTypeMax,
                yOut,
                scaleOut,
                offsetOut,
                workspaceSize,
                executor,
            )
        }
    }
    pub unsafe fn aclnnDynamicQuantV4(
        &self,
        workspace: *mut ::std::os::raw::c_void,
        workspaceSize: u64,
        executor: *mut aclOpExecutor,
        stream: aclrtStream,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnDynamicQuantV4
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(workspace, workspaceSize, executor, stream)
        }
    }
    pub unsafe fn aclnnAscendQuantV3GetWorkspaceSize(
        &self,
        x: *const aclTensor,
        scale: *const aclTensor,
        offset: *const aclTensor,
        sqrtMode: bool,
        roundMode: *const ::std::os::raw::c_char,
        dstType: i32,
        axis: i32,
        y: *const aclTensor,
        workspaceSize: *mut u64,
        executor: *mut *mut aclOpExecutor,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnAscendQuantV3GetWorkspaceSize
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(
                x,
                scale,
                offset,
                sqrtMode,
                roundMode,
                dstType,
                axis,
                y,
                workspaceSize,
                executor,
            )
        }
    }
    pub unsafe fn aclnnAscendQuantV3(
        &self,
        workspace: *mut ::std::os::raw::c_void,
        workspaceSize: u64,
        executor: *mut aclOpExecutor,
        stream: aclrtStream,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnAscendQuantV3
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(workspace, workspaceSize, executor, stream)
        }
    }
    pub unsafe fn aclnnAscendAntiQuantGetWorkspaceSize(
        &self,
        x: *const aclTensor,
        scale: *const aclTensor,
        offset: *const aclTensor,
        dstType: i64,
        sqrtMode: bool,
        y: *const aclTensor,
        workspaceSize: *mut u64,
        executor: *mut *mut aclOpExecutor,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnAscendAntiQuantGetWorkspaceSize
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(x, scale, offset, dstType, sqrtMode, y, workspaceSize, executor)
        }
    }
    pub unsafe fn aclnnAscendAntiQuant(
        &self,
        workspace: *mut ::std::os::raw::c_void,
        workspaceSize: u64,
        executor: *mut aclOpExecutor,
        stream: aclrtStream,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnAscendAntiQuant
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(workspace, workspaceSize, executor, stream)
        }
    }
    pub unsafe fn aclnnWeightQuantBatchMatmulV2GetWorkspaceSize(
        &self,
        x: *const aclTensor,
        weight: *const aclTensor,
        antiquantScale: *const aclTensor,
        antiquantOffsetOptional: *const aclTensor,
        quantScaleOptional: *const aclTensor,
        quantOffsetOptional: *const aclTensor,
        biasOptional: *const aclTensor,
        antiquantGroupSize: ::std::os::raw::c_int,
        y: *const aclTensor,
        workspaceSize: *mut u64,
        executor: *mut *mut aclOpExecutor,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnWeightQuantBatchMatmulV2GetWorkspaceSize
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(
                x,
                weight,
                antiquantScale,
                antiquantOffsetOptional,
                quantScaleOptional,
                quantOffsetOptional,
                biasOptional,
                antiquantGroupSize,
                y,
                workspaceSize,
                executor,
            )
        }
    }
    pub unsafe fn aclnnWeightQuantBatchMatmulV2(
        &self,
        workspace: *mut ::std::os::raw::c_void,
        workspaceSize: u64,
        executor: *mut aclOpExecutor,
        stream: aclrtStream,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnWeightQuantBatchMatmulV2
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(workspace, workspaceSize, executor, stream)
        }
    }
    pub unsafe fn aclnnWeightQuantBatchMatmulV3GetWorkspaceSize(
        &self,
        x: *const aclTensor,
        weight: *const aclTensor,
        antiquantScale: *const aclTensor,
        antiquantOffsetOptional: *const aclTensor,
        quantScaleOptional: *const aclTensor,
        quantOffsetOptional: *const aclTensor,
        biasOptional: *const aclTensor,
        antiquantGroupSize: ::std::os::raw::c_int,
        innerPrecise: ::std::os::raw::c_int,
        y: *const aclTensor,
        workspaceSize: *mut u64,
        executor: *mut *mut aclOpExecutor,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnWeightQuantBatchMatmulV3GetWorkspaceSize
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(
                x,
                weight,
                antiquantScale,
                antiquantOffsetOptional,
                quantScaleOptional,
                quantOffsetOptional,
                biasOptional,
                antiquantGroupSize,
                innerPrecise,
                y,
                workspaceSize,
                executor,
            )
        }
    }
    pub unsafe fn aclnnWeightQuantBatchMatmulV3(
        &self,
        workspace: *mut ::std::os::raw::c_void,
        workspaceSize: u64,
        executor: *mut aclOpExecutor,
        stream: aclrtStream,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnWeightQuantBatchMatmulV3
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(workspace, workspaceSize, executor, stream)
        }
    }
    pub unsafe fn aclnnWeightQuantBatchMatmulNzGetWorkspaceSize(
        &self,
        x: *const aclTensor,
        weight: *const aclTensor,
        antiquantScale: *const aclTensor,
        antiquantOffsetOptional: *const aclTensor,
        quantScaleOptional: *const aclTensor,
        quantOffsetOptional: *const aclTensor,
        biasOptional: *const aclTensor,
        antiquantGroupSize: ::std::os::raw::c_int,
        y: *const aclTensor,
        workspaceSize: *mut u64,
        executor: *mut *mut aclOpExecutor,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnWeightQuantBatchMatmulNzGetWorkspaceSize
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(
                x,
                weight,
                antiquantScale,
                antiquantOffsetOptional,
                quantScaleOptional,
                quantOffsetOptional,
                biasOptional,
                antiquantGroupSize,
                y,
                workspaceSize,
                executor,
            )
        }
    }
    pub unsafe fn aclnnWeightQuantBatchMatmulNz(
        &self,
        workspace: *mut ::std::os::raw::c_void,
        workspaceSize: u64,
        executor: *mut aclOpExecutor,
        stream: aclrtStream,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnWeightQuantBatchMatmulNz
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(workspace, workspaceSize, executor, stream)
        }
    }
    pub unsafe fn aclnnMmGetWorkspaceSize(
        &self,
        self_: *const aclTensor,
        mat2: *const aclTensor,
        out: *mut aclTensor,
        cubeMathType: i8,
        workspaceSize: *mut u64,
        executor: *mut *mut aclOpExecutor,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnMmGetWorkspaceSize
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(self_, mat2, out, cubeMathType, workspaceSize, executor)
        }
    }
    pub unsafe fn aclnnMm(
        &self,
        workspace: *mut ::std::os::raw::c_void,
        workspaceSize: u64,
        executor: *mut aclOpExecutor,
        stream: aclrtStream,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnMm
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(workspace, workspaceSize, executor, stream)
        }
    }
    pub unsafe fn aclnnConvertWeightToINT4PackGetWorkspaceSize(
        &self,
        weight: *const aclTensor,
        weightInt4Pack: *mut aclTensor,
        workspaceSize: *mut u64,
        executor: *mut *mut aclOpExecutor,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnConvertWeightToINT4PackGetWorkspaceSize
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(weight, weightInt4Pack, workspaceSize, executor)
        }
    }
    pub unsafe fn aclnnConvertWeightToINT4Pack(
        &self,
        workspace: *mut ::std::os::raw::c_void,
        workspaceSize: u64,
        executor: *mut aclOpExecutor,
        stream: aclrtStream,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnConvertWeightToINT4Pack
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(workspace, workspaceSize, executor, stream)
        }
    }
    pub unsafe fn aclnnFlatQuantGetWorkspaceSize(
        &self,
        x: *const aclTensor,
        kroneckerP1: *const aclTensor,
        kroneckerP2: *const aclTensor,
        clipRatio: f64,
        out: *mut aclTensor,
        quantScale: *mut aclTensor,
        workspaceSize: *mut u64,
        executor: *mut *mut aclOpExecutor,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnFlatQuantGetWorkspaceSize
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(
                x,
                kroneckerP1,
                kroneckerP2,
                clipRatio,
                out,
                quantScale,
                workspaceSize,
                executor,
            )
        }
    }
    pub unsafe fn aclnnFlatQuant(
        &self,
        workspace: *mut ::std::os::raw::c_void,
        workspaceSize: u64,
        executor: *mut aclOpExecutor,
        stream: aclrtStream,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnFlatQuant
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(workspace, workspaceSize, executor, stream)
        }
    }
}
impl Operators {
    pub fn symbols(&self) -> Vec<(&'static str, bool)> {
        vec![
            ("aclnnQuantMatmulV3GetWorkspaceSize", self.aclnnQuantMatmulV3GetWorkspaceSize.is_ok()),
            ("aclnnQuantMatmulV3", self.aclnnQuantMatmulV3.is_ok()),
            ("aclnnQuantMatmulV4GetWorkspaceSize", self.aclnnQuantMatmulV4GetWorkspaceSize.is_ok()),
            ("aclnnQuantMatmulV4", self.aclnnQuantMatmulV4.is_ok()),
            ("aclnnQuantMatmulV5GetWorkspaceSize", self.aclnnQuantMatmulV5GetWorkspaceSize.is_ok()),
            ("aclnnQuantMatmulV5", self.aclnnQuantMatmulV5.is_ok()),
            ("aclnnQuantMatmulWeightNzGetWorkspaceSize", self.aclnnQuantMatmulWeightNzGetWorkspaceSize.is_ok()),
            ("aclnnQuantMatmulWeightNz", self.aclnnQuantMatmulWeightNz.is_ok()),
            ("aclnnTransQuantParam", self.aclnnTransQuantParam.is_ok()),
            ("aclnnTransQuantParamV2GetWorkspaceSize", self.aclnnTransQuantParamV2GetWorkspaceSize.is_ok()),
            ("aclnnTransQuantParamV2", self.aclnnTransQuantParamV2.is_ok()),
            ("aclnnTransQuantParamV3GetWorkspaceSize", self.aclnnTransQuantParamV3GetWorkspaceSize.is_ok()),
            ("aclnnTransQuantParamV3", self.aclnnTransQuantParamV3.is_ok()),
            ("aclnnDynamicQuantGetWorkspaceSize", self.aclnnDynamicQuantGetWorkspaceSize.is_ok()),
            ("aclnnDynamicQuant", self.aclnnDynamicQuant.is_ok()),
            ("aclnnDynamicQuantV2GetWorkspaceSize", self.aclnnDynamicQuantV2GetWorkspaceSize.is_ok()),
            ("aclnnDynamicQuantV2", self.aclnnDynamicQuantV2.is_ok()),
            ("aclnnDynamicQuantV3GetWorkspaceSize", self.aclnnDynamicQuantV3GetWorkspaceSize.is_ok()),
            ("aclnnDynamicQuantV3", self.aclnnDynamicQuantV3.is_ok()),
            ("aclnnDynamicQuantV4GetWorkspaceSize", self.aclnnDynamicQuantV4GetWorkspaceSize.is_ok()),
            ("aclnnDynamicQuantV4", self.aclnnDynamicQuantV4.is_ok()),
            ("aclnnAscendQuantV3GetWorkspaceSize", self.aclnnAscendQuantV3GetWorkspaceSize.is_ok()),
            ("aclnnAscendQuantV3", self.aclnnAscendQuantV3.is_ok()),
            ("aclnnAscendAntiQuantGetWorkspaceSize", self.aclnnAscendAntiQuantGetWorkspaceSize.is_ok()),
            ("aclnnAscendAntiQuant", self.aclnnAscendAntiQuant.is_ok()),
            ("aclnnWeightQuantBatchMatmulV2GetWorkspaceSize", self.aclnnWeightQuantBatchMatmulV2GetWorkspaceSize.is_ok()),
            ("aclnnWeightQuantBatchMatmulV2", self.aclnnWeightQuantBatchMatmulV2.is_ok()),
            ("aclnnWeightQuantBatchMatmulV3GetWorkspaceSize", self.aclnnWeightQuantBatchMatmulV3GetWorkspaceSize.is_ok()),
            ("aclnnWeightQuantBatchMatmulV3", self.aclnnWeightQuantBatchMatmulV3.is_ok()),
            ("aclnnWeightQuantBatchMatmulNzGetWorkspaceSize", self.aclnnWeightQuantBatchMatmulNzGetWorkspaceSize.is_ok()),
            ("aclnnWeightQuantBatchMatmulNz", self.aclnnWeightQuantBatchMatmulNz.is_ok()),
            ("aclnnMmGetWorkspaceSize", self.aclnnMmGetWorkspaceSize.is_ok()),
            ("aclnnMm", self.aclnnMm.is_ok()),
            ("aclnnConvertWeightToINT4PackGetWorkspaceSize", self.aclnnConvertWeightToINT4PackGetWorkspaceSize.is_ok()),
            ("aclnnConvertWeightToINT4Pack", self.aclnnConvertWeightToINT4Pack.is_ok()),
            ("aclnnFlatQuantGetWorkspaceSize", self.aclnnFlatQuantGetWorkspaceSize.is_ok()),
            ("aclnnFlatQuant", self.aclnnFlatQuant.is_ok()),
        ]
    }
}
}

/// Attention.
pub mod attention {
use super::types::*;

pub struct Attention {
    __library: ::libloading::Library,
    pub aclnnFusedInferAttentionScoreV3GetWorkspaceSize: Result<
        unsafe extern "C" fn(
            query: *const aclTensor,
            key: *const aclTensorList,
            value: *const aclTensorList,
            pseShift: *const aclTensor,
            attenMask: *const aclTensor,
            actualSeqLengths: *const aclIntArray,
            actualSeqLengthsKv: *const aclIntArray,
            deqScale1: *const aclTensor,
            quantScale1: *const aclTensor,
            deqScale2: *const aclTensor,
            quantScale2: *const aclTensor,
            quantOffset2: *const aclTensor,
            antiquantScale: *const aclTensor,
            antiquantOffset: *const aclTensor,
            blockTable: *const aclTensor,
            queryPaddingSize: *const aclTensor,
            kvPaddingSize: *const aclTensor,
            keyAntiquantScale: *const aclTensor,
            keyAntiquantOffset: *const aclTensor,
            valueAntiquantScale: *const aclTensor,
            valueAntiquantOffset: *const aclTensor,
            keySharedPrefix: *const aclTensor,
            valueSharedPrefix: *const aclTensor,
            actualSharedPrefixLen: *const aclIntArray,
            queryRope: *const aclTensor,
            keyRope: *const aclTensor,
            keyRopeAntiquantScale: *const aclTensor,
            numHeads: i64,
            scaleValue: f64,
            preTokens: i64,
            nextTokens: i64,
            inputLayout: *mut ::std::os::raw::c_char,
            numKeyValueHeads: i64,
            sparseMode: i64,
            innerPrecise: i64,
            blockSize: i64,
            antiquantMode: i64,
            softmaxLseFlag: bool,
            keyAntiquantMode: i64,
            valueAntiquantMode: i64,
            attentionOut: *const aclTensor,
            softmaxLse: *const aclTensor,
            workspaceSize: *mut u64,
            executor: *mut *mut aclOpExecutor,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
    pub aclnnFusedInferAttentionScoreV3: Result<
        unsafe extern "C" fn(
            workspace: *mut ::std::os::raw::c_void,
            workspaceSize: u64,
            executor: *mut aclOpExecutor,
            stream: aclrtStream,
        ) -> aclnnStatus,
        ::libloading::Error,
    >,
}
impl Attention {
    pub unsafe fn new<P>(path: P) -> Result<Self, ::libloading::Error>
    where
        P: AsRef<::std::ffi::OsStr>,
    {
        let path = path.as_ref();
        let library = unsafe { ::libloading::Library::new(path) }?;
        unsafe { Self::from_library(library) }
    }
    pub unsafe fn from_library<L>(library: L) -> Result<Self, ::libloading::Error>
    where
        L: Into<::libloading::Library>,
    {
        let __library = library.into();
        let aclnnFusedInferAttentionScoreV3GetWorkspaceSize = unsafe {
            __library.get(b"aclnnFusedInferAttentionScoreV3GetWorkspaceSize\0")
        }
            .map(|sym| *sym);
        let aclnnFusedInferAttentionScoreV3 = unsafe {
            __library.get(b"aclnnFusedInferAttentionScoreV3\0")
        }
            .map(|sym| *sym);
        Ok(Attention {
            __library,
            aclnnFusedInferAttentionScoreV3GetWorkspaceSize,
            aclnnFusedInferAttentionScoreV3,
        })
    }
    pub unsafe fn aclnnFusedInferAttentionScoreV3GetWorkspaceSize(
        &self,
        query: *const aclTensor,
        key: *const aclTensorList,
        value: *const aclTensorList,
        pseShift: *const aclTensor,
        attenMask: *const aclTensor,
        actualSeqLengths: *const aclIntArray,
        actualSeqLengthsKv: *const aclIntArray,
        deqScale1: *const aclTensor,
        quantScale1: *const aclTensor,
        deqScale2: *const aclTensor,
        quantScale2: *const aclTensor,
        quantOffset2: *const aclTensor,
        antiquantScale: *const aclTensor,
        antiquantOffset: *const aclTensor,
        blockTable: *const aclTensor,
        queryPaddingSize: *const aclTensor,
        kvPaddingSize: *const aclTensor,
        keyAntiquantScale: *const aclTensor,
        keyAntiquantOffset: *const aclTensor,
        valueAntiquantScale: *const aclTensor,
        valueAntiquantOffset: *const aclTensor,
        keySharedPrefix: *const aclTensor,
        valueSharedPrefix: *const aclTensor,
        actualSharedPrefixLen: *const aclIntArray,
        queryRope: *const aclTensor,
        keyRope: *const aclTensor,
        keyRopeAntiquantScale: *const aclTensor,
        numHeads: i64,
        scaleValue: f64,
        preTokens: i64,
        nextTokens: i64,
        inputLayout: *mut ::std::os::raw::c_char,
        numKeyValueHeads: i64,
        sparseMode: i64,
        innerPrecise: i64,
        blockSize: i64,
        antiquantMode: i64,
        softmaxLseFlag: bool,
        keyAntiquantMode: i64,
        valueAntiquantMode: i64,
        attentionOut: *const aclTensor,
        softmaxLse: *const aclTensor,
        workspaceSize: *mut u64,
        executor: *mut *mut aclOpExecutor,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnFusedInferAttentionScoreV3GetWorkspaceSize
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(
                query,
                key,
                value,
                pseShift,
                attenMask,
                actualSeqLengths,
                actualSeqLengthsKv,
                deqScale1,
                quantScale1,
                deqScale2,
                quantScale2,
                quantOffset2,
                antiquantScale,
                antiquantOffset,
                blockTable,
                queryPaddingSize,
                kvPaddingSize,
                keyAntiquantScale,
                keyAntiquantOffset,
                valueAntiquantScale,
                valueAntiquantOffset,
                keySharedPrefix,
                valueSharedPrefix,
                actualSharedPrefixLen,
                queryRope,
                keyRope,
                keyRopeAntiquantScale,
                numHeads,
                scaleValue,
                preTokens,
                nextTokens,
                inputLayout,
                numKeyValueHeads,
                sparseMode,
                innerPrecise,
                blockSize,
                antiquantMode,
                softmaxLseFlag,
                keyAntiquantMode,
                valueAntiquantMode,
                attentionOut,
                softmaxLse,
                workspaceSize,
                executor,
            )
        }
    }
    pub unsafe fn aclnnFusedInferAttentionScoreV3(
        &self,
        workspace: *mut ::std::os::raw::c_void,
        workspaceSize: u64,
        executor: *mut aclOpExecutor,
        stream: aclrtStream,
    ) -> aclnnStatus {
        unsafe {
            (self
                .aclnnFusedInferAttentionScoreV3
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(workspace, workspaceSize, executor, stream)
        }
    }
}
impl Attention {
    pub fn symbols(&self) -> Vec<(&'static str, bool)> {
        vec![
            ("aclnnFusedInferAttentionScoreV3GetWorkspaceSize", self.aclnnFusedInferAttentionScoreV3GetWorkspaceSize.is_ok()),
            ("aclnnFusedInferAttentionScoreV3", self.aclnnFusedInferAttentionScoreV3.is_ok()),
        ]
    }
}
}
