//! Devices, contexts, streams, events, memory.

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use super::string;
use crate::Switch;
use crate::generated::types::*;
use crate::memory::Place;
use crate::world::{Answer, Fault, Handle, World, call, recent_message, refuse, report};

/// What a call of the runtime ends with when a fault is injected.
const FAILS: Fault = Fault::Before(ACL_ERROR_RT_INTERNAL_ERROR);
const RELEASES: Fault = Fault::After(ACL_ERROR_RT_INTERNAL_ERROR);

/// Writes an answer to where the caller wants it.
///
/// # Safety
/// `into` is null or has room for it.
unsafe fn give<T>(into: *mut T, value: T) -> Answer<()> {
    if into.is_null() {
        return refuse(ACL_ERROR_INVALID_PARAM, "a null pointer is to take the answer");
    }
    // SAFETY: not null, and room by the caller's promise.
    unsafe { into.write(value) };
    Ok(())
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclInit(_configPath: *const c_char) -> aclError {
    call("aclInit", Fault::Before(ACL_ERROR_INTERNAL_ERROR), |world| {
        if world.initialised {
            return refuse(ACL_ERROR_REPEAT_INITIALIZE, "aclInit was called before");
        }
        world.initialised = true;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclFinalize() -> aclError {
    call("aclFinalize", Fault::After(ACL_ERROR_INTERNAL_ERROR), |world| {
        world.ready()?;
        world.initialised = false;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclGetRecentErrMsg() -> *const c_char {
    recent_message()
}

fn check_device(world: &World, device: i32) -> Answer<()> {
    world.ready()?;
    let devices = world.switch(Switch::Devices);
    if (0..devices).contains(&i64::from(device)) {
        Ok(())
    } else if devices == 0 {
        refuse(ACL_ERROR_RT_NO_DEVICE, "no device is there")
    } else {
        refuse(ACL_ERROR_RT_INVALID_DEVICEID, format!("EE1001: device {device} of {devices}"))
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtSetDevice(deviceId: i32) -> aclError {
    call("aclrtSetDevice", FAILS, |world| {
        check_device(world, deviceId)?;
        *world.devices.entry(deviceId).or_insert(0) += 1;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtResetDevice(deviceId: i32) -> aclError {
    call("aclrtResetDevice", RELEASES, |world| {
        check_device(world, deviceId)?;
        if world.contexts.values().any(|&device| device == deviceId) {
            return report(format!("device {deviceId} is reset while a context of it is alive"));
        }
        match world.devices.remove(&deviceId) {
            Some(_) => Ok(()),
            None => report(format!("device {deviceId} is reset and was never set")),
        }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtGetDeviceCount(count: *mut u32) -> aclError {
    call("aclrtGetDeviceCount", FAILS, |world| {
        let devices = u32::try_from(world.switch(Switch::Devices)).unwrap_or(0);
        // SAFETY: the caller's pointer is for this.
        unsafe { give(count, devices) }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtGetSocName() -> *const c_char {
    c"Ascend910B_simulated".as_ptr()
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtGetVersion(
    majorVersion: *mut i32,
    minorVersion: *mut i32,
    patchVersion: *mut i32,
) -> aclError {
    call("aclrtGetVersion", FAILS, |_| {
        // SAFETY: the caller's pointers are for this.
        unsafe { give(majorVersion, 1).and(give(minorVersion, 16)).and(give(patchVersion, 0)) }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclsysGetVersionStr(
    pkgName: *mut c_char,
    versionStr: *mut c_char,
) -> aclError {
    call("aclsysGetVersionStr", FAILS, |_| {
        // SAFETY: a text of the caller.
        let Some(package) = (unsafe { string(pkgName) }) else {
            return refuse(ACL_ERROR_INVALID_PARAM, "no package is named");
        };
        if versionStr.is_null() || package.is_empty() {
            return refuse(ACL_ERROR_INVALID_PARAM, "no package is named, or no buffer given");
        }
        let text = c"9.1.0-simulated";
        // SAFETY: the caller's buffer has 128 bytes.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), versionStr, text.count_bytes() + 1) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtCreateContext(context: *mut aclrtContext, deviceId: i32) -> aclError {
    call("aclrtCreateContext", FAILS, |world| {
        check_device(world, deviceId)?;
        let handle = world.handle();
        // SAFETY: the caller's pointer is for this.
        unsafe { give(context, handle as aclrtContext) }?;
        world.contexts.insert(handle, deviceId);
        world.set_context(handle)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtDestroyContext(context: aclrtContext) -> aclError {
    call("aclrtDestroyContext", RELEASES, |world| {
        let handle = context as usize;
        if !world.contexts.contains_key(&handle) {
            return world.dead(Handle::Context, handle);
        }
        if world.streams.all().into_iter().any(|stream| world.streams.context_of(stream) == Some(handle)) {
            return report("a context is destroyed while a stream of it is alive");
        }
        world.contexts.remove(&handle);
        world.deterministic.remove(&handle);
        world.bury(handle);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtSetCurrentContext(context: aclrtContext) -> aclError {
    call("aclrtSetCurrentContext", FAILS, |world| world.set_context(context as usize))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtCreateStream(stream: *mut aclrtStream) -> aclError {
    call("aclrtCreateStream", FAILS, |world| {
        let context = world.context()?;
        let handle = world.handle();
        // SAFETY: the caller's pointer is for this.
        unsafe { give(stream, handle as aclrtStream) }?;
        world.streams.create(handle, context);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtDestroyStream(stream: aclrtStream) -> aclError {
    call("aclrtDestroyStream", RELEASES, |world| {
        let handle = world.stream(stream)?;
        world.streams.destroy(handle);
        world.bury(handle);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtSynchronizeStream(stream: aclrtStream) -> aclError {
    call("aclrtSynchronizeStream", FAILS, |world| {
        let stream = world.stream(stream)?;
        let end = world.streams.end(stream);
        world.run_until(stream, end)?;
        world.streams.host_knows_stream(stream);
        Ok(())
    })
}

fn event(world: &World, event: aclrtEvent) -> Answer<usize> {
    world.context()?;
    if world.streams.has_event(event as usize) {
        Ok(event as usize)
    } else {
        world.dead(Handle::Event, event as usize)
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtCreateEvent(event: *mut aclrtEvent) -> aclError {
    call("aclrtCreateEvent", FAILS, |world| {
        world.context()?;
        let handle = world.handle();
        // SAFETY: the caller's pointer is for this.
        unsafe { give(event, handle as aclrtEvent) }?;
        world.streams.create_event(handle);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtDestroyEvent(e: aclrtEvent) -> aclError {
    call("aclrtDestroyEvent", RELEASES, |world| {
        let handle = event(world, e)?;
        world.streams.destroy_event(handle);
        world.bury(handle);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtRecordEvent(e: aclrtEvent, stream: aclrtStream) -> aclError {
    call("aclrtRecordEvent", FAILS, |world| {
        let (event, stream) = (event(world, e)?, world.stream(stream)?);
        world.streams.record(event, stream);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtStreamWaitEvent(stream: aclrtStream, e: aclrtEvent) -> aclError {
    call("aclrtStreamWaitEvent", FAILS, |world| {
        let (stream, event) = (world.stream(stream)?, event(world, e)?);
        if world.streams.wait(stream, event) {
            Ok(())
        } else {
            report("a stream waits for an event that was never recorded")
        }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtSynchronizeEvent(e: aclrtEvent) -> aclError {
    call("aclrtSynchronizeEvent", FAILS, |world| {
        let event = event(world, e)?;
        let Some((stream, position)) = world.streams.recorded_at(event) else {
            return report("the host waits for an event that was never recorded");
        };
        world.run_until(stream, position)?;
        world.streams.host_knows_event(event);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtEventElapsedTime(
    ms: *mut f32,
    startEvent: aclrtEvent,
    endEvent: aclrtEvent,
) -> aclError {
    call("aclrtEventElapsedTime", FAILS, |world| {
        let (start, end) = (event(world, startEvent)?, event(world, endEvent)?);
        match (world.streams.passed(start), world.streams.passed(end)) {
            // A tick for every task: a measure of nothing, but it grows.
            // SAFETY: the caller's pointer is for this.
            (Some(start), Some(end)) => unsafe { give(ms, (end as f32 - start as f32) * 1e-3) },
            _ => report("the time between events is asked for before both have passed"),
        }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtMalloc(
    devPtr: *mut *mut c_void,
    size: usize,
    policy: aclrtMemMallocPolicy,
) -> aclError {
    call("aclrtMalloc", Fault::Before(ACL_ERROR_RT_MEMORY_ALLOCATION), |world| {
        world.context()?;
        if devPtr.is_null() || policy > 6 {
            return refuse(ACL_ERROR_INVALID_PARAM, "a null pointer, or a policy that is none");
        }
        let at = world.memory.allocate(size, Place::Device)?;
        // SAFETY: the caller's pointer is for this.
        unsafe { give(devPtr, at as *mut c_void) }
    })
}

/// Frees memory that no queued task uses.
fn free(world: &mut World, at: *mut c_void, place: Place) -> Answer<()> {
    if world.memory.block(at as usize).is_some() && !world.idle(at as usize) {
        return report("memory is freed while queued work uses it");
    }
    world.memory.release(at as usize, place)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtFree(devPtr: *mut c_void) -> aclError {
    call("aclrtFree", Fault::After(ACL_ERROR_RT_MEMORY_FREE), |world| {
        world.context()?;
        free(world, devPtr, Place::Device)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtMallocHost(hostPtr: *mut *mut c_void, size: usize) -> aclError {
    call("aclrtMallocHost", Fault::Before(ACL_ERROR_RT_MEMORY_ALLOCATION), |world| {
        world.context()?;
        if hostPtr.is_null() {
            return refuse(ACL_ERROR_INVALID_PARAM, "a null pointer is to take the memory");
        }
        let at = world.memory.allocate(size, Place::Host)?;
        // SAFETY: the caller's pointer is for this.
        unsafe { give(hostPtr, at as *mut c_void) }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtFreeHost(hostPtr: *mut c_void) -> aclError {
    call("aclrtFreeHost", Fault::After(ACL_ERROR_RT_MEMORY_FREE), |world| {
        world.context()?;
        free(world, hostPtr, Place::Host)
    })
}

/// The checks that both copies share: the blocks of device memory at either end.
fn copied(
    world: &World,
    (dst, destMax): (usize, usize),
    src: usize,
    count: usize,
    kind: aclrtMemcpyKind,
) -> Answer<[Option<usize>; 2]> {
    if count > destMax {
        return refuse(
            ACL_ERROR_INVALID_PARAM,
            format!("{count} bytes are copied to where {destMax} have room"),
        );
    }
    if dst == 0 || src == 0 || count == 0 {
        return refuse(ACL_ERROR_INVALID_PARAM, "a null pointer, or nothing to copy");
    }
    let (to, from) = match kind {
        ACL_MEMCPY_HOST_TO_HOST => (false, false),
        ACL_MEMCPY_HOST_TO_DEVICE => (true, false),
        ACL_MEMCPY_DEVICE_TO_HOST => (false, true),
        ACL_MEMCPY_DEVICE_TO_DEVICE => (true, true),
        _ => return refuse(ACL_ERROR_INVALID_PARAM, format!("{kind} is no direction of copying")),
    };
    let device =
        |at, wanted: bool| wanted.then(|| world.memory.holder(at, count, Some(Place::Device))).transpose();
    Ok([device(src, from)?, device(dst, to)?])
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtMemcpy(
    dst: *mut c_void,
    destMax: usize,
    src: *const c_void,
    count: usize,
    kind: aclrtMemcpyKind,
) -> aclError {
    call("aclrtMemcpy", FAILS, |world| {
        world.context()?;
        let blocks = copied(world, (dst as usize, destMax), src as usize, count, kind)?;
        if blocks.into_iter().flatten().any(|block| !world.idle(block)) {
            return report("memory is copied while queued work uses it");
        }
        // SAFETY: device memory was checked, host memory is the caller's; two blocks never overlap.
        unsafe { std::ptr::copy(src.cast::<u8>(), dst.cast::<u8>(), count) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtMemcpyAsync(
    dst: *mut c_void,
    destMax: usize,
    src: *const c_void,
    count: usize,
    kind: aclrtMemcpyKind,
    stream: aclrtStream,
) -> aclError {
    call("aclrtMemcpyAsync", FAILS, |world| {
        let stream = world.stream(stream)?;
        let (dst, src) = (dst as usize, src as usize);
        let [from, to] = copied(world, (dst, destMax), src, count, kind)?;
        for (block, at) in [(from, src), (to, dst)] {
            if block.is_none() && world.memory.holder(at, count, Some(Place::Host)).is_err() {
                return report("an asynchronous copy uses host memory that is not from aclrtMallocHost");
            }
        }
        let run = Arc::new(move |world: &mut World| {
            world.memory.holder(src, count, None)?;
            world.memory.holder(dst, count, None)?;
            // SAFETY: both ends lie in live blocks, which never overlap.
            unsafe { std::ptr::copy(src as *const u8, dst as *mut u8, count) };
            Ok(())
        });
        world.enqueue("aclrtMemcpyAsync", stream, vec![src], vec![dst], run)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtGetMemInfo(
    attr: aclrtMemAttr,
    free: *mut usize,
    total: *mut usize,
) -> aclError {
    call("aclrtGetMemInfo", FAILS, |world| {
        world.context()?;
        if attr != ACL_HBM_MEM {
            return refuse(ACL_ERROR_INVALID_PARAM, "this device has only HBM");
        }
        let (capacity, used) = (world.memory.capacity, world.memory.used(Place::Device));
        // SAFETY: the caller's pointers are for this.
        unsafe { give(free, capacity.saturating_sub(used)).and(give(total, capacity)) }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtCtxSetSysParamOpt(opt: aclSysParamOpt, value: i64) -> aclError {
    call("aclrtCtxSetSysParamOpt", FAILS, |world| {
        let context = world.context()?;
        if opt != ACL_OPT_DETERMINISTIC || !(0..=3).contains(&value) {
            return refuse(ACL_ERROR_INVALID_PARAM, format!("option {opt} with {value}"));
        }
        if value == 0 {
            world.deterministic.remove(&context);
        } else {
            world.deterministic.insert(context);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtSetDeviceSatMode(mode: aclrtFloatOverflowMode) -> aclError {
    call("aclrtSetDeviceSatMode", FAILS, |world| {
        world.context()?;
        let saturates = match mode {
            ACL_RT_OVERFLOW_MODE_INFNAN => false,
            ACL_RT_OVERFLOW_MODE_SATURATION => true,
            other => return refuse(ACL_ERROR_INVALID_PARAM, format!("overflow mode {other}")),
        };
        world.set_switch(Switch::Saturation, i64::from(saturates));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclrtGetDeviceSatMode(mode: *mut aclrtFloatOverflowMode) -> aclError {
    call("aclrtGetDeviceSatMode", FAILS, |world| {
        world.context()?;
        let found = match world.switch(Switch::Saturation) {
            0 => ACL_RT_OVERFLOW_MODE_INFNAN,
            _ => ACL_RT_OVERFLOW_MODE_SATURATION,
        };
        // SAFETY: the caller's pointer is for this.
        unsafe { give(mode, found) }
    })
}
