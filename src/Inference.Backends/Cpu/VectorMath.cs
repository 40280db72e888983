// exp, log(1 + e^x), sigmoid, sine and cosine: one implementation of each, used by every kernel of this backend.
//
// Built from additions, multiplications, FMAs, divisions and comparisons only, all of them rounded as IEEE 754 says, so the bits are
// the same with 512, 256, 128 or no SIMD lanes, and a lane's result depends on that lane's argument alone. The library's functions
// promise neither. The scalar forms run the vector code on one value.
// Polynomials are Taylor series about the middle of a short interval; errors are measured in VectorMathTests.
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace Inference.Backends.Cpu;

internal static unsafe class VectorMath
{
    private const double TwoOverPi = 2 / Math.PI;
    private const double HalfPiHigh = Math.PI / 2;
    private const double HalfPiLow = 6.123233995736766e-17; // pi/2 minus its nearest double
    private const double RoundToInteger = 6755399441055744.0; // 1.5 * 2^52: adding it leaves the integer in the low bits

    /// <summary>e^x, within 1 ulp. Below -104 it is 0, above 89 infinity; NaN stays NaN.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Exp(Vector512<float> x)
    {
        // x = n ln 2 + r with |r| <= ln(2) / 2; the first step of r is exact. The bounds keep 2^n in reach of two factors.
        x = Vector512.ConditionalSelect(Vector512.LessThan(x, Vector512.Create(-105f)), Vector512.Create(-105f), x);
        x = Vector512.ConditionalSelect(Vector512.GreaterThan(x, Vector512.Create(89f)), Vector512.Create(89f), x);
        var shifted = Vector512.FusedMultiplyAdd(x, Vector512.Create(1.44269504f), Vector512.Create(12582912f)); // 1.5 * 2^23
        var n = shifted - Vector512.Create(12582912f);
        var exact = Vector512.FusedMultiplyAdd(n, Vector512.Create(-0.693147182f), x);
        var r = Vector512.FusedMultiplyAdd(n, Vector512.Create(1.90465421e-9f), exact);
        var lost = Vector512.FusedMultiplyAdd(n, Vector512.Create(1.90465421e-9f), exact - r); // what rounding r dropped

        var q = Vector512.FusedMultiplyAdd(r, Vector512.Create(1f / 5040), Vector512.Create(1f / 720));
        q = Vector512.FusedMultiplyAdd(q, r, Vector512.Create(1f / 120));
        q = Vector512.FusedMultiplyAdd(q, r, Vector512.Create(1f / 24));
        q = Vector512.FusedMultiplyAdd(q, r, Vector512.Create(1f / 6));
        q = Vector512.FusedMultiplyAdd(q, r, Vector512.Create(0.5f));
        var sum = Vector512<float>.One + r;
        var dropped = (Vector512<float>.One - sum) + r;
        var y = sum + (dropped + Vector512.FusedMultiplyAdd(r * r, q, lost));

        // 2^n in two halves, so that a subnormal result is rounded once and overflow gives infinity.
        var power = shifted.AsInt32() - Vector512.Create(0x4B400000);
        var half = power >> 1;
        return y * PowerOfTwo(half) * PowerOfTwo(power - half);
    }

    public static float Exp(float x) => Exp(Vector512.Create(x)).ToScalar();

    /// <summary>1 / (1 + e^-x), within 2 ulp, also where it is subnormal.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Sigmoid(Vector512<float> x)
    {
        var e = Exp(-Vector512.Abs(x));
        var sum = Vector512<float>.One + e;
        var dropped = (Vector512<float>.One - sum) + e; // what rounding the sum dropped; it is put back to first order
        var negative = Vector512.LessThan(x, Vector512<float>.Zero);
        var y = Vector512.ConditionalSelect(negative, e, Vector512<float>.One) / sum;
        var inverse = Vector512.ConditionalSelect(negative, Vector512<float>.One - y, y); // of the sum
        return Vector512.FusedMultiplyAdd(-(dropped * inverse), y, y);
    }

    public static float Sigmoid(float x) => Sigmoid(Vector512.Create(x)).ToScalar();

    /// <summary>x * sigmoid(x).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Silu(Vector512<float> x) => x * Sigmoid(x);

    /// <summary>log(1 + e^x); the identity above 20, as the models were trained.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Softplus(Vector512<float> x)
    {
        var y = Vector512.ConditionalSelect(Vector512.GreaterThan(x, Vector512<float>.Zero), x, Vector512<float>.Zero)
            + LogOnePlus(Exp(-Vector512.Abs(x)));
        return Vector512.ConditionalSelect(Vector512.GreaterThan(x, Vector512.Create(20f)), x, y);
    }

    /// <summary>Natural logarithm of a positive normal number, within 1 ulp.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Log(Vector512<float> x) => Log(x, Vector512<float>.Zero);

    public static float Log(float x) => Log(Vector512.Create(x)).ToScalar();

    /// <summary>log(1 + u) for 0 &lt;= u &lt;= 1, small u included: what 1 + u drops is added back as a first-order term.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> LogOnePlus(Vector512<float> u)
    {
        var sum = Vector512<float>.One + u;
        var dropped = u - (sum - Vector512<float>.One);
        return Log(sum, dropped / sum);
    }

    /// <summary>log(x) + correction, the correction being small beside 1.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> Log(Vector512<float> x, Vector512<float> correction)
    {
        // x = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)); log(1 + f) = f - s (f - R) with s = f / (2 + f), R = 2 s^2 (1/3 + s^2/5 + ...).
        var bits = x.AsInt32() - Vector512.Create(0x3F3504F3);
        var k = bits >> 23;
        var f = (x.AsInt32() - (k << 23)).AsSingle() - Vector512<float>.One;
        var s = f / (f + Vector512.Create(2f));
        var z = s * s;
        var r = Vector512.FusedMultiplyAdd(z, Vector512.Create(2f / 11), Vector512.Create(2f / 9));
        r = Vector512.FusedMultiplyAdd(r, z, Vector512.Create(2f / 7));
        r = Vector512.FusedMultiplyAdd(r, z, Vector512.Create(2f / 5));
        r = Vector512.FusedMultiplyAdd(r, z, Vector512.Create(2f / 3)) * z;
        var n = Vector512.ConvertToSingle(k);
        var low = Vector512.FusedMultiplyAdd(n, Vector512.Create(1.42860677e-6f), correction);
        low = low - s * (f - r);
        return Vector512.FusedMultiplyAdd(n, Vector512.Create(0.693145752f), f + low); // n times a constant of 15 bits is exact
    }

    /// <summary>e^x in double for x &lt;= 0, within 1e-13 relative; 0 below -700.</summary>
    public static Vector512<double> ExpOfNegative(Vector512<double> x)
    {
        var tiny = Vector512.LessThan(x, Vector512.Create(-700.0));
        x = Vector512.ConditionalSelect(tiny, Vector512.Create(-700.0), x);
        var shifted = Vector512.FusedMultiplyAdd(x, Vector512.Create(1.4426950408889634), Vector512.Create(RoundToInteger));
        var n = shifted - Vector512.Create(RoundToInteger);
        var r = Vector512.FusedMultiplyAdd(n, Vector512.Create(-0.6931471805599453), x);
        r = Vector512.FusedMultiplyAdd(n, Vector512.Create(-2.3190468138462996e-17), r);
        var q = Vector512.Create(1.0 / 39916800); // 1 / 11!
        q = Vector512.FusedMultiplyAdd(q, r, Vector512.Create(1.0 / 3628800));
        q = Vector512.FusedMultiplyAdd(q, r, Vector512.Create(1.0 / 362880));
        q = Vector512.FusedMultiplyAdd(q, r, Vector512.Create(1.0 / 40320));
        q = Vector512.FusedMultiplyAdd(q, r, Vector512.Create(1.0 / 5040));
        q = Vector512.FusedMultiplyAdd(q, r, Vector512.Create(1.0 / 720));
        q = Vector512.FusedMultiplyAdd(q, r, Vector512.Create(1.0 / 120));
        q = Vector512.FusedMultiplyAdd(q, r, Vector512.Create(1.0 / 24));
        q = Vector512.FusedMultiplyAdd(q, r, Vector512.Create(1.0 / 6));
        q = Vector512.FusedMultiplyAdd(q, r, Vector512.Create(0.5));
        q = Vector512.FusedMultiplyAdd(q, r, Vector512<double>.One);
        q = Vector512.FusedMultiplyAdd(q, r, Vector512<double>.One);
        var power = (shifted.AsInt64() - Vector512.Create(RoundToInteger).AsInt64() + Vector512.Create(1023L)) << 52;
        return Vector512.ConditionalSelect(tiny, Vector512<double>.Zero, q * power.AsDouble());
    }

    /// <summary>Sine and cosine of angles up to about 10^9, within 1e-12: more than enough to round correctly to F32.</summary>
    public static (Vector512<double> Sine, Vector512<double> Cosine) SineCosine(Vector512<double> angle)
    {
        // angle = n pi/2 + r with |r| <= pi/4; n mod 4 says which of sin r, cos r is which, and their signs.
        var shifted = Vector512.FusedMultiplyAdd(angle, Vector512.Create(TwoOverPi), Vector512.Create(RoundToInteger));
        var n = shifted - Vector512.Create(RoundToInteger);
        var r = Vector512.FusedMultiplyAdd(n, Vector512.Create(-HalfPiHigh), angle);
        r = Vector512.FusedMultiplyAdd(n, Vector512.Create(-HalfPiLow), r);
        var z = r * r;

        var s = Vector512.FusedMultiplyAdd(z, Vector512.Create(1.0 / 6227020800), Vector512.Create(-1.0 / 39916800));
        s = Vector512.FusedMultiplyAdd(s, z, Vector512.Create(1.0 / 362880));
        s = Vector512.FusedMultiplyAdd(s, z, Vector512.Create(-1.0 / 5040));
        s = Vector512.FusedMultiplyAdd(s, z, Vector512.Create(1.0 / 120));
        s = Vector512.FusedMultiplyAdd(s, z, Vector512.Create(-1.0 / 6));
        s = Vector512.FusedMultiplyAdd(s * z, r, r);

        var c = Vector512.FusedMultiplyAdd(z, Vector512.Create(-1.0 / 87178291200), Vector512.Create(1.0 / 479001600));
        c = Vector512.FusedMultiplyAdd(c, z, Vector512.Create(-1.0 / 3628800));
        c = Vector512.FusedMultiplyAdd(c, z, Vector512.Create(1.0 / 40320));
        c = Vector512.FusedMultiplyAdd(c, z, Vector512.Create(-1.0 / 720));
        c = Vector512.FusedMultiplyAdd(c, z, Vector512.Create(1.0 / 24));
        c = Vector512.FusedMultiplyAdd(c, z, Vector512.Create(-0.5));
        c = Vector512.FusedMultiplyAdd(c, z, Vector512<double>.One);

        var quarter = shifted.AsInt64();
        var odd = Vector512.Equals(quarter & Vector512<long>.One, Vector512<long>.One).AsDouble();
        var sineSign = (quarter & Vector512.Create(2L)) << 62;
        var cosineSign = ((quarter + Vector512<long>.One) & Vector512.Create(2L)) << 62;
        var sine = (Vector512.ConditionalSelect(odd, c, s).AsInt64() ^ sineSign).AsDouble();
        var cosine = (Vector512.ConditionalSelect(odd, s, c).AsInt64() ^ cosineSign).AsDouble();
        return (sine, cosine);
    }

    /// <summary>2^n for n in [-126, 127].</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> PowerOfTwo(Vector512<int> n) => ((n + Vector512.Create(127)) << 23).AsSingle();
}
