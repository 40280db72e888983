using Grpc.AspNetCore.Server;
using Inference.Server.Options;
using Microsoft.AspNetCore.Connections;
using Microsoft.AspNetCore.Connections.Features;
using Microsoft.AspNetCore.Http.Features;
using Microsoft.AspNetCore.Server.Kestrel.Core;

namespace Inference.Server.Hosting;

/// <summary>
/// Keeps what belongs to one listener off the others: calls on gRPC listeners, pages on the HTTP one, reflection (unless told otherwise) on
/// loopback listeners. What is not allowed looks as if it were not there. It also holds methods to their exact spelling: routing alone
/// ignores case and decodes percent signs, and two spellings of one method are one too many for whoever writes rules about methods.
/// </summary>
internal sealed class ListenerGate(RequestDelegate next, ServerOptions options, EndpointDataSource endpoints)
{
    private static readonly object Key = new();

    private readonly Lazy<HashSet<string>> _methods =
        new(() => [.. endpoints.Endpoints.Select(e => e.Metadata.GetMetadata<GrpcMethodMetadata>()?.Method.FullName).OfType<string>()]);

    /// <summary>Marks the connections of a listener.</summary>
    public static void Tag(ListenOptions bound, ListenerOptions listener) => bound.Use(connection => context =>
    {
        context.Items[Key] = listener;
        return connection(context);
    });

    public Task InvokeAsync(HttpContext context)
    {
        var listener = (ListenerOptions?)context.Features.Get<IConnectionItemsFeature>()?.Items[Key];
        bool isCall = context.Request.ContentType?.StartsWith("application/grpc", StringComparison.OrdinalIgnoreCase) == true;
        bool isReflection = context.Request.Path.StartsWithSegments("/grpc.reflection.v1.ServerReflection")
            || context.Request.Path.StartsWithSegments("/grpc.reflection.v1alpha.ServerReflection");
        if (isCall && listener?.Kind != ListenerKind.Http)
        {
            if (listener is null || isReflection && !MayReflect(listener) || IsOtherSpelling(context)) context.Request.Path = "/none/none";
        }
        else if (isCall || listener?.Kind != ListenerKind.Http)
        {
            context.Request.Path = "/";
        }
        return next(context);
    }

    private bool IsOtherSpelling(HttpContext context)
    {
        string asSent = context.Features.Get<IHttpRequestFeature>()?.RawTarget ?? "";
        return !_methods.Value.Contains(asSent) && _methods.Value.Contains(context.Request.Path.Value ?? "", StringComparer.OrdinalIgnoreCase);
    }

    private bool MayReflect(ListenerOptions listener) => options.Reflection == ReflectionMode.On || options.Reflection == ReflectionMode.Auto && listener.IsLoopback;
}
