//! Words of two elements in bf16, as processors multiply them: one word of a matrix with one of another gives the sum
//! of two products. They lie where floats do, and are never computed with as such.

use half::bf16;

/// The lower address comes first.
#[inline(always)]
pub(crate) fn word(first: bf16, second: bf16) -> f32 {
    f32::from_bits(u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16)
}

/// Writes the words of the elements at the same places.
#[inline(always)]
pub(crate) fn pair(out: &mut [f32], first: &[bf16], second: &[bf16]) {
    for ((out, &first), &second) in out.iter_mut().zip(first).zip(second) {
        *out = word(first, second);
    }
}

/// Writes words whose second elements are zero.
#[inline(always)]
pub(crate) fn pair_with_zeros(out: &mut [f32], first: &[bf16]) {
    for (out, &first) in out.iter_mut().zip(first) {
        *out = word(first, bf16::ZERO);
    }
}

/// The elements of words, two of each.
#[cfg(any(test, target_arch = "x86_64"))]
pub(crate) fn elements(words: &[f32]) -> &[bf16] {
    #[expect(unsafe_code, reason = "the same memory as another type")]
    // SAFETY: a word is as long as two elements and aligned as they must be; every bit pattern is one of either.
    unsafe {
        std::slice::from_raw_parts(words.as_ptr().cast(), 2 * words.len())
    }
}

/// The same, to be written.
pub(crate) fn elements_mut(words: &mut [f32]) -> &mut [bf16] {
    #[expect(unsafe_code, reason = "the same memory as another type")]
    // SAFETY: as in `elements`, and the slice is borrowed for as long as the result.
    unsafe {
        std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), 2 * words.len())
    }
}

/// Elements as words, where they lie as words must.
pub(crate) fn words(elements: &[bf16]) -> Option<&[f32]> {
    #[expect(unsafe_code, reason = "the same memory as another type")]
    // SAFETY: every bit pattern is a float.
    let (before, words, after) = unsafe { elements.align_to::<f32>() };
    (before.is_empty() && after.is_empty()).then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_two_elements_each() {
        let numbers: Vec<bf16> = (0..6).map(|i| bf16::from_f32(i as f32 - 2.5)).collect();
        let packed: Vec<f32> = numbers.chunks(2).map(|two| word(two[0], two[1])).collect();
        assert_eq!(elements(&packed), numbers);
        let again = words(elements(&packed)).expect("as words lie");
        assert!(again.iter().zip(&packed).all(|(a, b)| a.to_bits() == b.to_bits()));
        assert!(words(&elements(&packed)[1..]).is_none());
        let mut out = vec![0.0; 3];
        pair(&mut out, &numbers[..3], &numbers[3..]);
        assert_eq!(elements(&out), [0, 3, 1, 4, 2, 5].map(|i| numbers[i]));
        pair_with_zeros(&mut out, &numbers);
        assert_eq!(elements(&out)[..4], [numbers[0], bf16::ZERO, numbers[1], bf16::ZERO]);
    }
}
