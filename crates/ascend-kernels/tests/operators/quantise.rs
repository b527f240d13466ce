//! Codes of tokens, codes under fixed scales, and scales as words.

use crate::npu::{Npu, halves};
use ascend_kernels::layout::{group_size, pack_scale};
use ascend_kernels::operators::{
    AntiQuant, DynamicQuant, DynamicVersion, PackScales, Round, StaticQuant, pack_scales_on_host,
};
use ascend_kernels::{Cann, Device, DeviceBuffer, OpenOptions, Stream, Tensor};
use half::{bf16, f16};

#[test]
pub(crate) fn tokens_are_quantised_in_every_version() {
    let npu = Npu::new();
    let values = [0.37_f32, -0.1, 0.25, 0.3699, 0.0, 0.0, 0.0, 0.0, 12.0, 4.0, -3.0, 8.0]
        .map(|x| bf16::from_f32(x).to_f32());
    let x = npu.put(&halves(&values, bf16::from_f32), &[3, 4]);
    for version in [DynamicVersion::V1, DynamicVersion::V2, DynamicVersion::V3, DynamicVersion::V4] {
        let ((codes, code), (scales, scale)) = (npu.room::<i8>(&[3, 4]), npu.room::<f32>(&[3]));
        let operator = DynamicQuant { x: &x, smooth: None, codes: &code, scale: &scale, offset: None };
        npu.run(operator.prepare_with(&npu.device, version));
        for (row, (got, scale)) in values.chunks(4).zip(npu.get(&codes).chunks(4).zip(npu.get(&scales))) {
            let largest = row.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
            assert_eq!(scale, largest * (1.0 / 127.0_f32), "{version:?}");
            // A row of zeros: codes of 0, though 127/0 · 0 is no number.
            let want = row.iter().map(|x| (x * (127.0 / largest)).round_ties_even() as i8);
            assert_eq!(got, want.collect::<Vec<_>>(), "{version:?}");
        }
    }
    // Smooth scales, and an offset.
    let smooth = npu.put(&halves(&[1.0, 2.0, 0.5, 4.0], bf16::from_f32), &[4]);
    let ((codes, code), (scales, scale), (offsets, offset)) =
        (npu.room::<i8>(&[3, 4]), npu.room::<f32>(&[3]), npu.room::<f32>(&[3]));
    let operator =
        DynamicQuant { x: &x, smooth: Some(&smooth), codes: &code, scale: &scale, offset: Some(&offset) };
    npu.run(operator.prepare(&npu.device));
    // The last row: 12, 8, −1.5, 32.
    let step = (32.0_f32 + 1.5) / 255.0;
    let zero = 127.0 - 32.0 / step;
    assert_eq!((npu.get(&scales)[2], npu.get(&offsets)[2]), (step, zero));
    let want = [12.0_f32, 8.0, -1.5, 32.0].map(|x| (x * (1.0 / step) + zero).round_ties_even() as i8);
    assert_eq!(npu.get(&codes)[8..], want);
    assert!(operator.prepare_with(&npu.device, DynamicVersion::V1).is_err());
}

#[test]
pub(crate) fn static_codes_and_numbers_of_codes() {
    let npu = Npu::new();
    let x = npu.put(&[1.0_f32, 2.5, -3.5, 1000.0], &[1, 4]);
    let (scale, offset) = (npu.put(&[2.0_f32], &[1]), npu.put(&[0.5_f32], &[1]));
    for (round, want) in [
        (Round::Nearest, [2, 6, -6, 127]),
        (Round::Floor, [2, 5, -7, 127]),
        (Round::Ceil, [3, 6, -6, 127]),
        (Round::Trunc, [2, 5, -6, 127]),
    ] {
        let (codes, code) = npu.room::<i8>(&[1, 4]);
        npu.run(
            StaticQuant { x: &x, scale: &scale, offset: Some(&offset), round, codes: &code }
                .prepare(&npu.device),
        );
        assert_eq!(npu.get(&codes), want, "{round:?}");
    }
    let codes = npu.put(&[-3_i8, 5, 127, 0], &[1, 4]);
    let (numbers, y) = npu.room::<f16>(&[1, 4]);
    npu.run(AntiQuant { codes: &codes, scale: &scale, offset: Some(&offset), y: &y }.prepare(&npu.device));
    assert_eq!(npu.get(&numbers), [-5.0, 11.0, 255.0, 1.0].map(f16::from_f32));
}

#[test]
pub(crate) fn scales_as_words() {
    let npu = Npu::new();
    let host = pack_scales_on_host(npu.device.cann(), &[1.1, 2.2, 3.3, 4.4, 5.5], &[]).unwrap();
    let words =
        [70_369_810_369_741, 70_369_818_758_349, 70_369_823_372_083, 70_369_827_146_957, 70_369_829_453_824];
    assert_eq!((&host[..5], &host[5..]), (&words[..], &[0; 11][..]));
    assert!(pack_scales_on_host(npu.device.cann(), &[f32::NAN], &[]).is_err());
    assert!(pack_scales_on_host(npu.device.cann(), &[1.0; 3], &[1.0; 2]).is_err());
    for (round, without, third) in [
        (false, "", 0x7FA0_3A83_0000),
        (false, "aclnnTransQuantParamV3", 0x7FA0_3A83_0000),
        (true, "", 0x7FA0_3A83_2000),
    ] {
        let options = OpenOptions::new().folder(npu.simulator.folder()).without(without);
        let device = Device::open(&Cann::open(&options).unwrap(), 1).unwrap();
        let stream = Stream::new(&device).unwrap();
        let again =
            |tensor: &[f32]| Tensor::new(&DeviceBuffer::from_slice(&device, tensor).unwrap(), &[3]).unwrap();
        let (a, b) = (again(&[1.0, 0.0123, 0.001]), again(&[0.0, 0.0, -3.0]));
        let words = DeviceBuffer::<u64>::new(&device, 3).unwrap();
        let out = Tensor::new(&words, &[3]).unwrap();
        PackScales { scale: &a, offset: Some(&b), round, out: &out }
            .prepare(&device)
            .unwrap()
            .launch(&stream)
            .unwrap();
        let got = words.read(&stream).unwrap();
        let second = if round { 0x4000_3C49_8000 } else { pack_scale(0.0123, 0) };
        assert_eq!(got, [0x4000_3F80_0000, second, third], "{round} {without}");
    }
    let (scale, offset) = (npu.put(&[0.001_f32], &[1]), npu.put(&[5.0_f32], &[1]));
    let (words, out) = npu.room::<u64>(&[1]);
    npu.run(
        PackScales { scale: &scale, offset: Some(&offset), round: false, out: &out }.prepare(&npu.device),
    );
    assert_eq!(npu.get(&words), [0x40A0_3A83_0000]);
    assert_eq!(group_size(1, 128, 128).unwrap(), 4_303_356_032);
}
