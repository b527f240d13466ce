//! Every function of the simulator has the type that the header gives it, or this does not compile.

use crate::generated::{attention, objects, operators, runtime};

fn runtime(symbols: &mut runtime::Runtime) {
    symbols.aclInit = Ok(super::runtime::aclInit);
    symbols.aclFinalize = Ok(super::runtime::aclFinalize);
    symbols.aclGetRecentErrMsg = Ok(super::runtime::aclGetRecentErrMsg);
    symbols.aclrtSetDevice = Ok(super::runtime::aclrtSetDevice);
    symbols.aclrtResetDevice = Ok(super::runtime::aclrtResetDevice);
    symbols.aclrtGetDeviceCount = Ok(super::runtime::aclrtGetDeviceCount);
    symbols.aclrtGetSocName = Ok(super::runtime::aclrtGetSocName);
    symbols.aclrtGetVersion = Ok(super::runtime::aclrtGetVersion);
    symbols.aclsysGetVersionStr = Ok(super::runtime::aclsysGetVersionStr);
    symbols.aclrtCreateContext = Ok(super::runtime::aclrtCreateContext);
    symbols.aclrtDestroyContext = Ok(super::runtime::aclrtDestroyContext);
    symbols.aclrtSetCurrentContext = Ok(super::runtime::aclrtSetCurrentContext);
    symbols.aclrtCreateStream = Ok(super::runtime::aclrtCreateStream);
    symbols.aclrtDestroyStream = Ok(super::runtime::aclrtDestroyStream);
    symbols.aclrtSynchronizeStream = Ok(super::runtime::aclrtSynchronizeStream);
    symbols.aclrtCreateEvent = Ok(super::runtime::aclrtCreateEvent);
    symbols.aclrtDestroyEvent = Ok(super::runtime::aclrtDestroyEvent);
    symbols.aclrtRecordEvent = Ok(super::runtime::aclrtRecordEvent);
    symbols.aclrtStreamWaitEvent = Ok(super::runtime::aclrtStreamWaitEvent);
    symbols.aclrtSynchronizeEvent = Ok(super::runtime::aclrtSynchronizeEvent);
    symbols.aclrtEventElapsedTime = Ok(super::runtime::aclrtEventElapsedTime);
    symbols.aclrtMalloc = Ok(super::runtime::aclrtMalloc);
    symbols.aclrtFree = Ok(super::runtime::aclrtFree);
    symbols.aclrtMallocHost = Ok(super::runtime::aclrtMallocHost);
    symbols.aclrtFreeHost = Ok(super::runtime::aclrtFreeHost);
    symbols.aclrtMemcpy = Ok(super::runtime::aclrtMemcpy);
    symbols.aclrtMemcpyAsync = Ok(super::runtime::aclrtMemcpyAsync);
    symbols.aclrtGetMemInfo = Ok(super::runtime::aclrtGetMemInfo);
    symbols.aclrtCtxSetSysParamOpt = Ok(super::runtime::aclrtCtxSetSysParamOpt);
    symbols.aclrtSetDeviceSatMode = Ok(super::runtime::aclrtSetDeviceSatMode);
    symbols.aclrtGetDeviceSatMode = Ok(super::runtime::aclrtGetDeviceSatMode);
}

fn objects(symbols: &mut objects::Objects) {
    symbols.aclCreateTensor = Ok(super::objects::aclCreateTensor);
    symbols.aclDestroyTensor = Ok(super::objects::aclDestroyTensor);
    symbols.aclCreateIntArray = Ok(super::objects::aclCreateIntArray);
    symbols.aclDestroyIntArray = Ok(super::objects::aclDestroyIntArray);
    symbols.aclCreateTensorList = Ok(super::objects::aclCreateTensorList);
    symbols.aclDestroyTensorList = Ok(super::objects::aclDestroyTensorList);
    symbols.aclSetAclOpExecutorRepeatable = Ok(super::objects::aclSetAclOpExecutorRepeatable);
    symbols.aclDestroyAclOpExecutor = Ok(super::objects::aclDestroyAclOpExecutor);
}

fn operators(symbols: &mut operators::Operators) {
    symbols.aclnnQuantMatmulV3GetWorkspaceSize = Ok(super::matmul::aclnnQuantMatmulV3GetWorkspaceSize);
    symbols.aclnnQuantMatmulV3 = Ok(super::phases::aclnnQuantMatmulV3);
    symbols.aclnnQuantMatmulV4GetWorkspaceSize = Ok(super::matmul::aclnnQuantMatmulV4GetWorkspaceSize);
    symbols.aclnnQuantMatmulV4 = Ok(super::phases::aclnnQuantMatmulV4);
    symbols.aclnnQuantMatmulV5GetWorkspaceSize = Ok(super::matmul::aclnnQuantMatmulV5GetWorkspaceSize);
    symbols.aclnnQuantMatmulV5 = Ok(super::phases::aclnnQuantMatmulV5);
    symbols.aclnnQuantMatmulWeightNzGetWorkspaceSize =
        Ok(super::matmul::aclnnQuantMatmulWeightNzGetWorkspaceSize);
    symbols.aclnnQuantMatmulWeightNz = Ok(super::phases::aclnnQuantMatmulWeightNz);
    symbols.aclnnTransQuantParam = Ok(super::scales::aclnnTransQuantParam);
    symbols.aclnnTransQuantParamV2GetWorkspaceSize =
        Ok(super::scales::aclnnTransQuantParamV2GetWorkspaceSize);
    symbols.aclnnTransQuantParamV2 = Ok(super::phases::aclnnTransQuantParamV2);
    symbols.aclnnTransQuantParamV3GetWorkspaceSize =
        Ok(super::scales::aclnnTransQuantParamV3GetWorkspaceSize);
    symbols.aclnnTransQuantParamV3 = Ok(super::phases::aclnnTransQuantParamV3);
    symbols.aclnnDynamicQuantGetWorkspaceSize = Ok(super::quantize::aclnnDynamicQuantGetWorkspaceSize);
    symbols.aclnnDynamicQuant = Ok(super::phases::aclnnDynamicQuant);
    symbols.aclnnDynamicQuantV2GetWorkspaceSize = Ok(super::quantize::aclnnDynamicQuantV2GetWorkspaceSize);
    symbols.aclnnDynamicQuantV2 = Ok(super::phases::aclnnDynamicQuantV2);
    symbols.aclnnDynamicQuantV3GetWorkspaceSize = Ok(super::quantize::aclnnDynamicQuantV3GetWorkspaceSize);
    symbols.aclnnDynamicQuantV3 = Ok(super::phases::aclnnDynamicQuantV3);
    symbols.aclnnDynamicQuantV4GetWorkspaceSize = Ok(super::quantize::aclnnDynamicQuantV4GetWorkspaceSize);
    symbols.aclnnDynamicQuantV4 = Ok(super::phases::aclnnDynamicQuantV4);
    symbols.aclnnAscendQuantV3GetWorkspaceSize = Ok(super::fixed::aclnnAscendQuantV3GetWorkspaceSize);
    symbols.aclnnAscendQuantV3 = Ok(super::phases::aclnnAscendQuantV3);
    symbols.aclnnAscendAntiQuantGetWorkspaceSize = Ok(super::fixed::aclnnAscendAntiQuantGetWorkspaceSize);
    symbols.aclnnAscendAntiQuant = Ok(super::phases::aclnnAscendAntiQuant);
    symbols.aclnnWeightQuantBatchMatmulV2GetWorkspaceSize =
        Ok(super::products::aclnnWeightQuantBatchMatmulV2GetWorkspaceSize);
    symbols.aclnnWeightQuantBatchMatmulV2 = Ok(super::phases::aclnnWeightQuantBatchMatmulV2);
    symbols.aclnnWeightQuantBatchMatmulV3GetWorkspaceSize =
        Ok(super::products::aclnnWeightQuantBatchMatmulV3GetWorkspaceSize);
    symbols.aclnnWeightQuantBatchMatmulV3 = Ok(super::phases::aclnnWeightQuantBatchMatmulV3);
    symbols.aclnnWeightQuantBatchMatmulNzGetWorkspaceSize =
        Ok(super::products::aclnnWeightQuantBatchMatmulNzGetWorkspaceSize);
    symbols.aclnnWeightQuantBatchMatmulNz = Ok(super::phases::aclnnWeightQuantBatchMatmulNz);
    symbols.aclnnMmGetWorkspaceSize = Ok(super::products::aclnnMmGetWorkspaceSize);
    symbols.aclnnMm = Ok(super::phases::aclnnMm);
    symbols.aclnnConvertWeightToINT4PackGetWorkspaceSize =
        Ok(super::fixed::aclnnConvertWeightToINT4PackGetWorkspaceSize);
    symbols.aclnnConvertWeightToINT4Pack = Ok(super::phases::aclnnConvertWeightToINT4Pack);
    symbols.aclnnFlatQuantGetWorkspaceSize = Ok(super::fixed::aclnnFlatQuantGetWorkspaceSize);
    symbols.aclnnFlatQuant = Ok(super::phases::aclnnFlatQuant);
}

fn attention(symbols: &mut attention::Attention) {
    symbols.aclnnFusedInferAttentionScoreV3GetWorkspaceSize =
        Ok(super::attention::aclnnFusedInferAttentionScoreV3GetWorkspaceSize);
    symbols.aclnnFusedInferAttentionScoreV3 = Ok(super::phases::aclnnFusedInferAttentionScoreV3);
}

const _: fn(&mut runtime::Runtime) = runtime;
const _: fn(&mut objects::Objects) = objects;
const _: fn(&mut operators::Operators) = operators;
const _: fn(&mut attention::Attention) = attention;
