// Package analysis compares a candidate revision with the stable one and says
// whether it does worse. It is statistics on counts: pure, without clock or I/O.
//
// Judge is asked again and again while the counts grow, and may answer "fail"
// at any of these looks. A test at a fixed size would be wrong then: looked at
// often enough, it always fails at some time. So everything here rests on
// e-values.
//
// # E-values
//
// An e-value is a number at least 0 whose mean is at most 1 when the candidate
// is no worse; large ones are evidence against it. Ville (1939): a process of
// such numbers that is a supermartingale ever reaches 1/α with a probability of
// at most α, however often and whenever one looks. Robbins (1970) made tests of
// that by averaging the likelihood ratio over alternatives, Johari et al.
// (2017) brought them to comparisons of two variants under peeking, Howard,
// Ramdas, McAuliffe and Sekhon (2021) to bounds that are uniform in time.
// Averages of e-values are e-values; that is used three times below.
//
// # Rates
//
// Of n0 requests of stable k0 were bad, of n1 of the candidate k1; n = n0+n1, k
// = k0+k1. A comparison lies within one epoch, so a request is the candidate's
// with the same probability throughout. If the candidate is as bad as stable,
// who of the n were bad says nothing about who were the candidate's: given n0,
// n1 and k, the number k1 has the hypergeometric distribution. If the candidate
// multiplies the odds of being bad by ψ > 1, it has Fisher's noncentral one.
// The evidence is the ratio of the two,
//
//	e(ψ) = ψ^k1 / E[ψ^K1],  K1 hypergeometric,
//
// averaged over ψ = 1.05, then 1 + 0.05·√2^i up to about 290 (together 3/4),
// and ψ = ∞ (1/4): all bad requests are the candidate's, which is what a broken
// route looks like beside a sound one. E[ψ^K1] is by Laplace's method, but for
// ψ = ∞ exact. Where the candidate's share of bad requests does not exceed
// stable's the evidence is taken for 0. With few bad requests it is the simpler
// test in which each is the candidate's with probability θ0 = n1/n, against
// larger θ: then E[ψ^K1] = (1−θ0+θ0ψ)^k, and by Hoeffding (1963, section 6) the
// hypergeometric mean is never above that. It is also the e-value of Turner, Ly
// and Grünwald (2024) for two shares, with the nuisance, the common share, put
// to k/n.
//
// That the mean is at most 1 at each moment is checked by summing over all outcomes
// (TestEvidenceIsFairAtEachMoment: at most 0.92). Over time:
//
//   - If requests get their side at random with a constant probability s, then for s in
//     place of n1/n the process is a martingale given all outcomes, whatever these do: base
//     rates may drift, fall and burst, as long as they burst for both sides. n1/n differs from
//     s by a product of two centred terms that stays bounded while the sum grows, so
//     it changes nothing that could be measured (TestEvidenceKeepsItsPromiseWhenPeekedAt).
//   - If the share drifts, or stable was counted before the candidate (Comparison.Before), and the
//     base rate is constant: for few bad requests e(ψ) is the Bayes factor with the Haar
//     prior 1/p on the base rate p, and so still a martingale (Hendriksen, de Heide and
//     Grünwald, 2021). That is why alternatives are odds and not values of θ: for those it would not hold.
//   - If share and base rate drift both, it breaks (Simpson's paradox). Within an epoch
//     the share is constant; between a bake's before and after time passes, and nothing
//     but an effect that is not explained by the hour helps: twice the least effect is asked for.
//
// # What is split
//
// α = 1 − Confidence. Each group gets an equal part; in a group all requests
// together get 1/4 and the changed routes, and the rest of them as one, equal
// parts of 3/4; of each: errors 0.4, latency 0.3, connect and notFound 0.1,
// notAllowed and panics 0.05, divided by the sum of those that are not off. A
// test fails from 1 over its part on. Routes without data keep their part: were
// α split among those that have some, the parts would shrink as they come in,
// and their sum over time exceed α.
//
// A fail also takes the least effect (difference of the two shares as counted,
// Metric.MinEffect) and 5 bad requests. Both make it rarer, neither weakens the
// promise. The promise is about candidates that are no worse, not about those
// that are worse by less than the effect: of these some may fail, when chance
// shows them as worse than they are.
//
// # Latency
//
// Buckets end at fixed bounds. For each bound, the share of requests that took
// longer is a rate as any other, and tested as such, without any rounding:
// counts beyond a bound are exact. The e-values of all 89 bounds are averaged.
// p50, p90 and p99 are estimated on both sides, as if durations spread evenly
// over the logarithm of their bucket. One fails if the candidate's estimate
// exceeds stable's by the least effect, and that part of the average which
// belongs to the bounds from the lower end of stable's bucket to the upper end
// of the candidate's is large enough. A part of a sum of positive numbers is at
// most the sum: it may be picked by what was seen, for all quantiles at once.
// This is the use of confidence sequences for a distribution function in Howard
// and Ramdas (2022), turned into a test at points that are known before.
//
// Comparing bounds of quantiles (the candidate's lower one above stable's upper
// one times 1.1) would miss 30 % at some places: buckets grow by 14 to 25 %,
// and two neighbours can be all that tells 30 % from nothing. Here 30 % always
// crosses a bound, for it is more than the widest bucket, and one bound is
// enough. The price: when all durations lie together in one bucket, the
// estimate of the effect is as coarse as the bucket, and a candidate slower by
// a few percent that crosses its bound may fail as one slower by 15 to 25 %.
// One that is not slower keeps the whole promise.
//
// # New, removed and silent routes
//
// A route that stable does not have is compared, for errors, connect and
// panics, with all requests of stable, and fails on a difference of 5
// percentage points or more. Stable may have it and not have been asked: the
// evidence is the smaller one of the rate's and of s^−m, where m are the
// candidate's requests on the route and s is its part of all requests, which is
// an e-value against "stable gets its part of this route". A route without
// requests of the candidate is inconclusive, also when it was removed: only
// people know that.
//
// # Share of keys
//
// The distinct keys of both sides (linear counting: Whang, Vander-Zanden and
// Taylor, 1990) are compared with the share wanted, two-sided, by Robbins'
// normal mixture, whose variance is that of the split plus that of both
// estimates, at α/10 and at most 10⁻⁴. A mismatch says that the sides do not
// stand for the same clients (Fabijan et al., 2019), so the group's findings
// count neither as a fail nor as a pass. With more keys than can be counted the
// shares of requests stand in, with a variance 26 times that of requests with a
// key each: as if requests per key had a coefficient of variation of 5.
//
// # Invariants
//
//   - Fail needs evidence, effect and 5 bad requests of one metric, in a group whose share of keys is not off.
//   - Pass needs everything in Config's minima, and no metric whose effect counts and
//     whose evidence is a quarter of the way to a fail, by logarithms.
//   - No data is inconclusive. The order of instances, groups and routes changes nothing.
//   - One bad request of the candidate more never makes a verdict better.
//   - Results hold only finite numbers, whatever the counts.
//
// # Assumptions
//
// Requests are bad independently of each other, given the moment. Where a share
// goes by key, one client's requests are all on one side: a client that alone
// makes a percent of the requests and always gets a bad answer looks like a bad
// candidate, or like a good one. Counts cannot tell; docs/statistics.md has how
// often that happens and what to do.
//
// # Sources
//
//   - J. Ville: Étude critique de la notion de collectif, 1939.
//   - W. Hoeffding: Probability inequalities for sums of bounded random variables. JASA 58, 1963.
//   - H. Robbins: Statistical methods related to the law of the iterated logarithm. Annals of Mathematical Statistics 41, 1970.
//   - K.-Y. Whang, B. Vander-Zanden, H. Taylor: A linear-time probabilistic counting algorithm for database applications. ACM TODS 15, 1990.
//   - R. Johari, P. Koomen, L. Pekelis, D. Walsh: Peeking at A/B tests. KDD 2017.
//   - A. Fabijan et al.: Diagnosing sample ratio mismatch in online controlled experiments. KDD 2019.
//   - S. Howard, A. Ramdas, J. McAuliffe, J. Sekhon: Time-uniform, nonparametric, nonasymptotic confidence sequences. Annals of Statistics 49, 2021.
//   - A. Hendriksen, R. de Heide, P. Grünwald: Optional stopping with Bayes factors. Bayesian Analysis 16, 2021.
//   - S. Howard, A. Ramdas: Sequential estimation of quantiles with applications to A/B testing and best-arm identification. Bernoulli 28, 2022.
//   - R. Turner, A. Ly, P. Grünwald: Generic E-variables for exact sequential k-sample tests that allow for optional stopping. Journal of Statistical Planning and Inference 230, 2024.
package analysis
