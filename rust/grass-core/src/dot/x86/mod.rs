//! Inner products in the vector registers of AVX-512 and AVX2.

/// Defines `add_products` for tiles of `$rows` rows, from the functions on one value a lane near it. What is to be done
/// beside the products is a `$beside`, a step of which goes with each block.
macro_rules! define_float_products {
    ($features:literal, $rows:literal, $beside:ty) => {
        /// Adds the products of rows and the queries of a tile.
        #[target_feature(enable = $features)]
        fn add_products(
            float: Float,
            rows: Rows<'_>,
            length: usize,
            tile: &[Lanes],
            sums: &mut [f64],
            beside: &mut $beside,
        ) {
            let queries = tile.len() / length.div_ceil(LANES);
            for_format_and_queries!(float, queries, add_rows(rows, length, tile, sums, beside));
        }

        #[target_feature(enable = $features)]
        fn add_rows<F: Format, const Q: usize>(
            rows: Rows<'_>,
            length: usize,
            tile: &[Lanes],
            sums: &mut [f64],
            beside: &mut $beside,
        ) {
            let (tile, bytes) = (tile.as_chunks::<Q>().0, length * F::FLOAT.bytes());
            let whole = rows.count / $rows * $rows;
            for row in (0..whole).step_by($rows) {
                let sums = &mut sums[row * Q..(row + $rows) * Q];
                add_tile::<F, $rows, Q>(rows.take(row, bytes), tile, sums, beside);
            }
            for row in whole..rows.count {
                let sums = &mut sums[row * Q..(row + 1) * Q];
                add_tile::<F, 1, Q>(rows.take(row, bytes), tile, sums, beside);
            }
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn add_tile<F: Format, const R: usize, const Q: usize>(
            rows: [&[u8]; R],
            tile: &[[Lanes; Q]],
            sums: &mut [f64],
            beside: &mut $beside,
        ) {
            let whole = F::blocks(rows[0]).0.len();
            let mut blocks = [[].as_slice(); R];
            for row in 0..R {
                blocks[row] = &F::blocks(rows[row]).0[..whole];
            }
            let mut totals = [[zero(); Q]; R];
            // Copied, so that the compiler keeps it in registers.
            let mut own = *beside;
            let (tile, last) = tile.split_at(whole);
            for (index, queries) in tile.iter().enumerate() {
                step::<F>(&mut own, index);
                let mut values = [zero(); R];
                for row in 0..R {
                    values[row] = load::<F>(&blocks[row][index]);
                }
                for query in 0..Q {
                    let lanes = load_query(&queries[query]);
                    for row in 0..R {
                        totals[row][query] = multiply_add(values[row], lanes, totals[row][query]);
                    }
                }
            }
            *beside = own;
            if let [last] = last {
                for row in 0..R {
                    let values = load_rest::<F>(F::blocks(rows[row]).1);
                    for query in 0..Q {
                        totals[row][query] =
                            multiply_add(values, load_query(&last[query]), totals[row][query]);
                    }
                }
            }
            add_lanes(totals, sums);
        }
    };
}

/// Defines `int8_products` for tiles of `$rows` rows, from `int8_tile` beside it.
macro_rules! define_int8_products {
    ($features:literal, $rows:literal) => {
        /// The products of rows and the queries of a tile.
        #[target_feature(enable = $features)]
        pub(in crate::dot) fn int8_products(
            rows: Rows<'_>,
            length: usize,
            tile: Int8Tile<'_>,
            products: &mut [i32],
        ) {
            match tile.sums.len() {
                1 => int8_rows::<1>(rows, length, tile, products),
                2 => int8_rows::<2>(rows, length, tile, products),
                3 => int8_rows::<3>(rows, length, tile, products),
                4 => int8_rows::<4>(rows, length, tile, products),
                5 => int8_rows::<5>(rows, length, tile, products),
                _ => int8_rows::<6>(rows, length, tile, products),
            }
        }

        #[target_feature(enable = $features)]
        fn int8_rows<const Q: usize>(
            rows: Rows<'_>,
            length: usize,
            tile: Int8Tile<'_>,
            products: &mut [i32],
        ) {
            let whole = rows.count / $rows * $rows;
            for row in (0..whole).step_by($rows) {
                let products = &mut products[row * Q..(row + $rows) * Q];
                int8_tile::<$rows, Q>(rows.take(row, length), tile, products);
            }
            for row in whole..rows.count {
                let products = &mut products[row * Q..(row + 1) * Q];
                int8_tile::<1, Q>(rows.take(row, length), tile, products);
            }
        }
    };
}

pub(super) mod avx2;
pub(super) mod avx512;
mod folding;
