using Inference.Server.Options;
using Microsoft.AspNetCore.Connections;
using Microsoft.AspNetCore.Connections.Features;
using Microsoft.AspNetCore.Server.Kestrel.Core;

namespace Inference.Server.Hosting;

/// <summary>
/// Keeps what belongs to one listener off the others: calls on gRPC listeners, pages on the HTTP one, reflection (unless told otherwise) on
/// loopback listeners. What is not allowed looks as if it were not there.
/// </summary>
internal sealed class ListenerGate(RequestDelegate next, ServerOptions options)
{
    private static readonly object Key = new();

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
        if (listener is null || isCall == (listener.Kind == ListenerKind.Http) || isReflection && !MayReflect(listener))
            context.Request.Path = isCall ? "/none/none" : "/";
        return next(context);
    }

    private bool MayReflect(ListenerOptions listener) => options.Reflection == ReflectionMode.On || options.Reflection == ReflectionMode.Auto && listener.IsLoopback;
}
