using System.Net;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using Inference.Testing;

namespace Inference.Server.Tests.Clients;

/// <summary>A certificate for localhost that signs itself, as PEM files.</summary>
internal sealed record TestCertificate(string CertificateFile, string KeyFile)
{
    public static TestCertificate Write(TemporaryFolder folder)
    {
        using var key = ECDsa.Create(ECCurve.NamedCurves.nistP256);
        var request = new CertificateRequest("CN=localhost", key, HashAlgorithmName.SHA256);
        var names = new SubjectAlternativeNameBuilder();
        names.AddDnsName("localhost");
        names.AddIpAddress(IPAddress.Loopback);
        request.CertificateExtensions.Add(names.Build());
        request.CertificateExtensions.Add(new X509BasicConstraintsExtension(true, false, 0, true));
        using var certificate = request.CreateSelfSigned(DateTimeOffset.UtcNow.AddHours(-1), DateTimeOffset.UtcNow.AddDays(1));
        File.WriteAllText(folder["certificate.pem"], certificate.ExportCertificatePem());
        File.WriteAllText(folder["key.pem"], key.ExportPkcs8PrivateKeyPem());
        return new(folder["certificate.pem"], folder["key.pem"]);
    }
}
