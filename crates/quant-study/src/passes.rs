//! Many sequences, as many at a time as there is room for.

/// Cuts `items` into runs of at most `most` tokens each, or of one item that has more.
pub(crate) fn passes<T>(
    items: &[T],
    most: usize,
    tokens: impl Fn(&T) -> usize,
) -> impl Iterator<Item = &[T]> {
    let mut rest = items;
    std::iter::from_fn(move || {
        let mut sum = 0;
        let fits = |item: &&T| {
            sum += tokens(item);
            sum <= most
        };
        let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (pass, after) = rest.split_at(count);
        rest = after;
        (!pass.is_empty()).then_some(pass)
    })
}

#[cfg(test)]
mod tests {
    use super::passes;

    #[test]
    fn a_pass_is_as_long_as_it_may_be() {
        let cut =
            |most| passes(&[3_usize, 2, 9, 1, 1, 1], most, |n| *n).map(<[usize]>::len).collect::<Vec<_>>();
        assert_eq!(cut(5), [2, 1, 3]);
        assert_eq!(cut(1), [1, 1, 1, 1, 1, 1]);
        assert_eq!(cut(100), [6]);
        assert_eq!(passes(&[], 5, |n: &usize| *n).count(), 0);
    }
}
