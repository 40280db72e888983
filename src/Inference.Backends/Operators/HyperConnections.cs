namespace Inference.Backends.Operators;

// Manifold-constrained hyper-connections (deepseek-v4 2.3): the residual state of a token is S streams of D channels.

/// <summary>
/// Coefficients of one site and the collapsed input of its sublayer. x = streams flattened, rho = rsqrt(mean(x^2) + NormEpsilon),
/// m = (Mix x) * rho; pre = sigmoid(m[0..S) * Scale[0] + Base) + Epsilon; Post = 2 sigmoid(m[S..2S) * Scale[1] + Base);
/// Combine = Sinkhorn(m[2S..) * Scale[2] + Base) (softmax over rows plus Epsilon, column step, then Iterations - 1 times row and
/// column steps, each dividing by sum + Epsilon); Output = sum over j of pre[j] * Streams[j].
/// </summary>
/// <param name="Streams">F32 [T, S, D].</param>
/// <param name="Mix">[(2 + S) * S, S * D].</param>
/// <param name="Base">F32 [(2 + S) * S].</param>
/// <param name="Scale">F32 [3].</param>
/// <param name="Output">F32 [T, D].</param>
/// <param name="Post">F32 [T, S].</param>
/// <param name="Combine">F32 [T, S, S]: [source, destination].</param>
public readonly record struct HyperConnectionPre(
    Tensor Streams, PreparedWeight Mix, Tensor Base, Tensor Scale, float NormEpsilon, float Epsilon, int Iterations,
    Tensor Output, Tensor Post, Tensor Combine) : IOperator;

/// <summary>Output[k] = Post[k] * Sublayer + sum over j of Combine[j, k] * Streams[j]. Output may be Streams.</summary>
/// <param name="Streams">F32 [T, S, D].</param>
/// <param name="Sublayer">F32 [T, D].</param>
/// <param name="Post">F32 [T, S].</param>
/// <param name="Combine">F32 [T, S, S].</param>
/// <param name="Output">F32 [T, S, D].</param>
public readonly record struct HyperConnectionPost(
    Tensor Streams, Tensor Sublayer, Tensor Post, Tensor Combine, Tensor Output) : IOperator;

/// <summary>Final collapse: w[j] = sigmoid((Mix x)[j] * rho * Scale[0] + Base[j]) + Epsilon; Output = sum over j of w[j] * Streams[j].</summary>
/// <param name="Streams">F32 [T, S, D].</param>
/// <param name="Mix">[S, S * D].</param>
/// <param name="Base">F32 [S].</param>
/// <param name="Scale">F32 [1].</param>
/// <param name="Output">F32 [T, D].</param>
public readonly record struct HyperConnectionHead(
    Tensor Streams, PreparedWeight Mix, Tensor Base, Tensor Scale, float NormEpsilon, float Epsilon, Tensor Output) : IOperator;
